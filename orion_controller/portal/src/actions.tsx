// What an operator can change. Each asks first and says what it will do.
import { path, request } from "./api";
import { counted, mib } from "./format";
import type { Group, Node, Session } from "./models";
import { ChangeGroup } from "./pages/changegroup";
import { isOperator } from "./session";
import { Confirm, openDialog } from "./ui/dialog";

export function NodeActions({ node }: { node: Node }) {
  if (!isOperator.value || node.state === "lost") return null;
  const drained = node.state === "draining";
  return (
    <button type="button" class="button" aria-label={`${drained ? "Undrain" : "Drain"} ${node.name}`} onClick={() => confirmDrain(node, !drained)}>
      {drained ? "Undrain" : "Drain"}
    </button>
  );
}

function confirmDrain(node: Node, draining: boolean): void {
  openDialog(
    <Confirm
      title={draining ? `Drain ${node.name}?` : `Undrain ${node.name}?`}
      action={draining ? "Drain" : "Undrain"}
      change={async () => {
        await request("PATCH", path`/nodes/${node.name}`, { draining });
        return draining ? `${node.name} is draining.` : `${node.name} takes new vGPUs again.`;
      }}
    >
      {draining ? (
        <p>
          The node gets no new vGPUs. What runs there goes on until it ends by itself: now {counted(node.vgpus, "vGPU")} with {counted(node.sessions, "task")}.
        </p>
      ) : (
        <p>The node can get new vGPUs again, at once.</p>
      )}
    </Confirm>,
  );
}

export function GroupActions({ group }: { group: Group }) {
  if (!isOperator.value) return null;
  return (
    <>
      <button type="button" class="button" aria-label={`Change ${group.group}`} onClick={() => openDialog(<ChangeGroup group={group} />)}>
        Change
      </button>
      <button type="button" class="button button-bad" aria-label={`End ${group.group}`} onClick={() => confirmEndGroup(group)}>
        End
      </button>
    </>
  );
}

function confirmEndGroup(group: Group): void {
  openDialog(
    <Confirm
      title={`End the group ${group.group}?`}
      action="End the group"
      danger
      change={async () => {
        await request("DELETE", path`/groups/${group.id}`);
        return `The group ${group.group} has ended.`;
      }}
    >
      <p>
        {group.sessions > 0 ? `${counted(group.sessions, "running task")} of ${group.owner || "an unknown owner"} will be stopped and lose what is in GPU memory` : "No task runs"};{" "}
        {counted(group.vgpus, "vGPU")} of {mib(group.gmem_mib)} will be free. This cannot be undone.
      </p>
    </Confirm>,
  );
}

export function SessionActions({ session }: { session: Session }) {
  if (!isOperator.value) return null;
  const name = session.program || `process ${session.pid}`;
  return (
    <button type="button" class="button button-bad" aria-label={`End ${name}, process ${session.pid} on ${session.host}`} onClick={() => confirmEndSession(session, name)}>
      End
    </button>
  );
}

function confirmEndSession(session: Session, name: string): void {
  openDialog(
    <Confirm
      title={`End ${name}?`}
      action="End the task"
      danger
      change={async () => {
        await request("DELETE", path`/sessions/${session.id}`);
        return `The task ${name} has ended.`;
      }}
    >
      <p>
        Process {session.pid} on {session.host} loses its GPU and what is in its memory; its next CUDA call fails. The vGPUs of the group {session.group_name} stay for its other tasks. This cannot be undone.
      </p>
    </Confirm>,
  );
}
