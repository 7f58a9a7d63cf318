// The dialog that changes quota and ratio of running programs: first what shall be, then what it means, then it is done.
import { useState } from "preact/hooks";
import { path, request } from "../api";
import { counted, mib, mibExact, percent } from "../format";
import type { Group, PatchGroup } from "../models";
import { closeDialog, Dialog, useChange } from "../ui/dialog";
import { Icon } from "../ui/icons";
import { Failure } from "../ui/parts";

const MAX_MIB = 1 << 30;

export function ChangeGroup({ group }: { group: Group }) {
  // What was when the dialog opened: it must not move while somebody types.
  const [before] = useState(group);
  const [gmem, setGmem] = useState(String(before.gmem_mib));
  const [ratio, setRatio] = useState(String(before.ratio_percent));
  const [policy, setPolicy] = useState(before.policy);
  const [shrink, setShrink] = useState<"refuse" | "block">("refuse");
  const [reviewing, setReviewing] = useState(false);

  const gmemMib = Number(gmem);
  const ratioPercent = Number(ratio);
  const smaller = gmemMib < before.gmem_mib;
  const patch: PatchGroup = {};
  if (gmemMib !== before.gmem_mib) patch.gmem_mib = gmemMib;
  if (ratioPercent !== before.ratio_percent) patch.ratio_percent = ratioPercent;
  if (policy !== before.policy) patch.policy = policy;
  const changed = Object.keys(patch).length > 0;
  if (smaller) patch.shrink = shrink;

  const { run, busy, failure } = useChange(async () => {
    await request("PATCH", path`/groups/${before.id}`, patch);
    return `${before.group} has changed: ${changes().join(", ")}.`;
  });

  function changes(): string[] {
    const list = [];
    if (patch.gmem_mib !== undefined) list.push(`memory ${mibExact(gmemMib)}`);
    if (patch.ratio_percent !== undefined) list.push(`ratio ${percent(ratioPercent)}`);
    if (patch.policy !== undefined) list.push(`policy ${policy}`);
    return list;
  }

  if (reviewing) {
    return (
      <Dialog title={`Change ${before.group} now?`} key="review">
        <div class="dialog-body">
          <p>
            This takes effect at once for {counted(before.vgpus, "vGPU")} with {counted(before.sessions, "running task")}
            {before.owner && ` of ${before.owner}`}. Nothing is restarted.
          </p>
          <dl class="review">
            {patch.gmem_mib !== undefined && <Changed name="Memory of each vGPU" from={mibExact(before.gmem_mib)} to={mibExact(gmemMib)} />}
            {patch.ratio_percent !== undefined && <Changed name="Ratio" from={percent(before.ratio_percent)} to={percent(ratioPercent)} />}
            {patch.policy !== undefined && <Changed name="Policy" from={before.policy} to={policy} />}
          </dl>
          {smaller && (
            <p class="muted">
              {shrink === "refuse" ? "If a program uses more than the new quota, nothing is changed." : "A program that uses more keeps what it has; its new allocations fail until it uses less."}
            </p>
          )}
          {failure && <Failure failure={failure} />}
        </div>
        <div class="dialog-foot">
          <button type="button" class="button" onClick={() => setReviewing(false)}>
            Back
          </button>
          <button type="button" class="button button-primary" autoFocus aria-disabled={busy} onClick={run}>
            {busy ? "Changing…" : "Change now"}
          </button>
        </div>
      </Dialog>
    );
  }

  return (
    <Dialog title={`Change ${before.group}`} key="edit">
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (changed) setReviewing(true);
        }}
      >
        <div class="dialog-body">
          <div class="field">
            <label for="gmem">Memory of each vGPU</label>
            <div class="with-unit">
              <input id="gmem" type="number" inputMode="numeric" required min={1} max={MAX_MIB} step={1} value={gmem} aria-describedby="gmem-hint" onInput={(event) => setGmem(event.currentTarget.value)} />
              <span>MiB</span>
            </div>
            <p class="hint" id="gmem-hint">
              {gmemMib >= 1024 ? `That is ${mib(gmemMib)}. ` : ""}Now {mibExact(before.gmem_mib)}; {counted(before.vgpus, "vGPU")} use {mib(before.used_mib)} together.
            </p>
          </div>
          {smaller && (
            <fieldset class="field choices">
              <legend>If a program uses more than that</legend>
              <Choice name="shrink" value="refuse" chosen={shrink} onChoose={setShrink} label="Change nothing" hint="The change is refused, and you are told." />
              <Choice name="shrink" value="block" chosen={shrink} onChoose={setShrink} label="Set it, and let usage fall" hint="Nothing is taken away; new allocations fail until the program uses less than the new quota." />
            </fieldset>
          )}
          <div class="field">
            <label for="ratio">Ratio: share of a GPU's time</label>
            <div class="with-slider">
              <input type="range" min={1} max={100} step={1} value={ratio} aria-label="Ratio, slider" onInput={(event) => setRatio(event.currentTarget.value)} />
              <div class="with-unit">
                <input id="ratio" type="number" inputMode="numeric" required min={1} max={100} step={1} value={ratio} aria-describedby="ratio-hint" onInput={(event) => setRatio(event.currentTarget.value)} />
                <span>%</span>
              </div>
            </div>
            <p class="hint" id="ratio-hint">
              Now {percent(before.ratio_percent)} configured, {percent(before.achieved_percent)} achieved.
            </p>
          </div>
          <fieldset class="field choices">
            <legend>Policy</legend>
            <Choice name="policy" value="hard" chosen={policy} onChoose={setPolicy} label="Hard" hint="Never more than the ratio, even on an idle GPU." />
            <Choice name="policy" value="elastic" chosen={policy} onChoose={setPolicy} label="Elastic" hint="At least the ratio; more while others leave the GPU idle." />
          </fieldset>
        </div>
        <div class="dialog-foot">
          <button type="button" class="button" onClick={closeDialog}>
            Cancel
          </button>
          <button type="submit" class="button button-primary" aria-disabled={!changed}>
            Review the change
          </button>
        </div>
      </form>
    </Dialog>
  );
}

function Changed({ name, from, to }: { name: string; from: string; to: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>
        <span class="hidden">from </span>
        {from} <Icon name="right" />
        <span class="hidden">to </span> <strong>{to}</strong>
      </dd>
    </div>
  );
}

function Choice<T extends string>(props: { name: string; value: T; chosen: T; onChoose: (value: T) => void; label: string; hint: string }) {
  const id = `${props.name}-${props.value}`;
  return (
    <div class="choice">
      <input type="radio" id={id} name={props.name} value={props.value} checked={props.chosen === props.value} aria-describedby={`${id}-hint`} onChange={() => props.onChoose(props.value)} />
      <label for={id}>{props.label}</label>
      <p class="hint" id={`${id}-hint`}>
        {props.hint}
      </p>
    </div>
  );
}
