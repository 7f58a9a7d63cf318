import { useState } from "preact/hooks";
import { path, request } from "../api";
import { count, mib } from "../format";
import type { Limits, LimitsBody } from "../models";
import { isOperator } from "../session";
import { closeDialog, Confirm, Dialog, openDialog, useChange } from "../ui/dialog";
import { Icon } from "../ui/icons";
import { Failure, Heading } from "../ui/parts";
import { type Column, DataTable } from "../ui/table";

const REST = "*";

function nameOf(limits: { group: string }): string {
  return limits.group === REST ? "all other groups" : limits.group;
}

function limit(value: number | null, format: (n: number) => string) {
  return value === null ? <span class="muted">no limit</span> : format(value);
}

export function LimitsPage() {
  const columns: Column<Limits>[] = [
    {
      label: "Group",
      sort: "group",
      head: true,
      render: (limits) => (
        <>
          {limits.group}
          {limits.group === REST && <span class="second">all that have no limits of their own</span>}
        </>
      ),
    },
    { label: "vGPUs", sort: "vgpus", num: true, render: (limits) => limit(limits.vgpus, count) },
    { label: "Memory", sort: "gmem_mib", num: true, render: (limits) => limit(limits.gmem_mib, mib) },
    { label: "Ratio", sort: "ratio_percent", num: true, render: (limits) => limit(limits.ratio_percent, (n) => `${count(n)}\u00a0%`) },
  ];
  if (isOperator.value) {
    columns.push({
      label: "Actions",
      wide: true,
      render: (limits) => (
        <span class="row-actions">
          <button type="button" class="button" aria-label={`Change the limits of ${nameOf(limits)}`} onClick={() => openDialog(<EditLimits limits={limits} />)}>
            Change
          </button>
          <button type="button" class="button button-bad" aria-label={`Remove the limits of ${nameOf(limits)}`} onClick={() => confirmRemove(limits)}>
            Remove
          </button>
        </span>
      ),
    });
  }
  return (
    <>
      <Heading title="Limits" sub="What all programs with the same ORION_GROUP_ID may have together. Who asks for more waits, or is refused.">
        {isOperator.value && (
          <button type="button" class="button button-primary" onClick={() => openDialog(<EditLimits limits={null} />)}>
            <Icon name="plus" />
            Add limits
          </button>
        )}
      </Heading>
      <DataTable<Limits> label="Limits" list="/limits" columns={columns} rowKey={(limits) => limits.group} defaultSort="group" search="Search limits" empty="No group is limited." />
    </>
  );
}

function confirmRemove(limits: Limits): void {
  openDialog(
    <Confirm
      title={`Remove the limits of ${nameOf(limits)}?`}
      action="Remove"
      danger
      change={async () => {
        await request("DELETE", path`/limits/${limits.group}`);
        return `The limits of ${nameOf(limits)} are removed.`;
      }}
    >
      <p>{limits.group === REST ? "Groups without limits of their own are then not limited." : `The limits of "${REST}" then hold for this group, if there are any.`}</p>
    </Confirm>,
  );
}

function EditLimits({ limits }: { limits: Limits | null }) {
  const [before] = useState(limits);
  const [group, setGroup] = useState(before?.group ?? "");
  const text = (value: number | null | undefined) => (value == null ? "" : String(value));
  const [vgpus, setVgpus] = useState(text(before?.vgpus));
  const [gmem, setGmem] = useState(text(before?.gmem_mib));
  const [ratio, setRatio] = useState(text(before?.ratio_percent));
  const number = (value: string) => (value === "" ? null : Number(value));
  const { run, busy, failure } = useChange(async () => {
    const body: LimitsBody = { vgpus: number(vgpus), gmem_mib: number(gmem), ratio_percent: number(ratio) };
    await request("PUT", path`/limits/${group.trim()}`, body);
    return `The limits of ${nameOf({ group: group.trim() })} are set.`;
  });
  return (
    <Dialog title={before ? `Limits of ${nameOf(before)}` : "Add limits"}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void run();
        }}
      >
        <div class="dialog-body">
          <p>Programs that run keep what they have; the limits hold for what is asked from now on. An empty field is no limit.</p>
          {!before && (
            <div class="field">
              <label for="limit-group">Group</label>
              <input id="limit-group" required maxLength={255} value={group} autocomplete="off" spellcheck={false} aria-describedby="limit-group-hint" onInput={(event) => setGroup(event.currentTarget.value)} />
              <p class="hint" id="limit-group-hint">
                The ORION_GROUP_ID, or * for all groups that have no limits of their own.
              </p>
            </div>
          )}
          <LimitField id="limit-vgpus" label="vGPUs" unit="" max={1 << 20} value={vgpus} onChange={setVgpus} />
          <LimitField id="limit-gmem" label="Memory, over all vGPUs" unit="MiB" max={2 ** 40} value={gmem} onChange={setGmem} hint={gmem && Number(gmem) >= 0 ? `That is ${mib(Number(gmem))}.` : ""} />
          <LimitField id="limit-ratio" label="Ratio, over all vGPUs" unit="%" max={1 << 30} value={ratio} onChange={setRatio} hint={ratio && Number(ratio) >= 0 ? `The time of ${Number(ratio) / 100} GPUs.` : "100 % is the time of one GPU."} />
          {failure && <Failure failure={failure} />}
        </div>
        <div class="dialog-foot">
          <button type="button" class="button" onClick={closeDialog}>
            Cancel
          </button>
          <button type="submit" class="button button-primary" aria-disabled={busy}>
            {busy ? "Setting…" : "Set the limits"}
          </button>
        </div>
      </form>
    </Dialog>
  );
}

function LimitField(props: { id: string; label: string; unit: string; max: number; value: string; hint?: string; onChange: (value: string) => void }) {
  return (
    <div class="field">
      <label for={props.id}>{props.label}</label>
      <div class="with-unit">
        <input id={props.id} type="number" inputMode="numeric" min={0} max={props.max} step={1} placeholder="no limit" value={props.value} aria-describedby={props.hint ? `${props.id}-hint` : undefined} onInput={(event) => props.onChange(event.currentTarget.value)} />
        {props.unit && <span>{props.unit}</span>}
      </div>
      {props.hint && (
        <p class="hint" id={`${props.id}-hint`}>
          {props.hint}
        </p>
      )}
    </div>
  );
}
