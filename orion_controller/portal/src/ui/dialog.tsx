// One dialog at a time, in the browser's own <dialog>: it keeps the focus inside, Esc closes it, and the focus goes back.
import { signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { ApiFailure } from "../api";
import { refreshAll } from "../live";
import { sessionEnded } from "../session";
import { Icon } from "./icons";
import { Failure } from "./parts";
import { toast } from "./toast";

const shown = signal<ComponentChildren>(null);

export function openDialog(content: ComponentChildren): void {
  shown.value = content;
}

export function closeDialog(): void {
  shown.value = null;
}

export function DialogHost() {
  return <>{shown.value}</>;
}

export function Dialog({ title, children }: { title: string; children: ComponentChildren }) {
  const element = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => {
    const dialog = element.current!;
    dialog.showModal();
    return () => {
      dialog.close();
      // What opened it may be gone, as the row of a session that was ended.
      if (document.activeElement === document.body) document.getElementById("title")?.focus();
    };
  }, []);
  return (
    <dialog
      ref={element}
      class="dialog"
      aria-labelledby="dialog-title"
      onCancel={(event) => {
        event.preventDefault();
        closeDialog();
      }}
    >
      <div class="dialog-head">
        <h2 id="dialog-title">{title}</h2>
        <button type="button" class="button button-quiet button-icon" aria-label="Close" onClick={closeDialog}>
          <Icon name="close" />
        </button>
      </div>
      {children}
    </dialog>
  );
}

/** Runs a change once at a time: closes the dialog when it is done, and keeps what failed to be shown. */
export function useChange(change: () => Promise<string>): { run: () => Promise<void>; busy: boolean; failure: ApiFailure | null } {
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<ApiFailure | null>(null);
  async function run(): Promise<void> {
    if (busy) return;
    setBusy(true);
    setFailure(null);
    try {
      const result = await change();
      closeDialog();
      toast(result);
      refreshAll();
    } catch (error) {
      const failed = error instanceof ApiFailure ? error : new ApiFailure(0, "", String(error));
      if (failed.status === 401) {
        closeDialog();
        sessionEnded();
      } else {
        setFailure(failed);
        setBusy(false);
      }
    }
  }
  return { run, busy, failure };
}

interface ConfirmProps {
  title: string;
  children: ComponentChildren;
  action: string;
  danger?: boolean;
  change: () => Promise<string>;
}

export function Confirm({ title, children, action, danger = false, change }: ConfirmProps) {
  const { run, busy, failure } = useChange(change);
  return (
    <Dialog title={title}>
      <div class="dialog-body">
        {children}
        {failure && <Failure failure={failure} />}
      </div>
      <div class="dialog-foot">
        <button type="button" class="button" autoFocus onClick={closeDialog}>
          Cancel
        </button>
        <button type="button" class={danger ? "button button-danger" : "button button-primary"} aria-disabled={busy} onClick={run}>
          {busy ? "Working…" : action}
        </button>
      </div>
    </Dialog>
  );
}
