// Results of what somebody did: shown for a while, and read out.
import { signal } from "@preact/signals";
import { Icon } from "./icons";

const SHOWN_MS = 8000;
const toasts = signal<{ id: number; text: string }[]>([]);
let lastId = 0;

export function toast(text: string): void {
  const id = ++lastId;
  toasts.value = [...toasts.value.slice(-2), { id, text }];
  window.setTimeout(() => (toasts.value = toasts.value.filter((one) => one.id !== id)), SHOWN_MS);
}

export function Toasts() {
  return (
    <div class="toasts" role="status" aria-live="polite" aria-label="Results">
      {toasts.value.map((one) => (
        <p class="toast" key={one.id}>
          <Icon name="check" />
          {one.text}
        </p>
      ))}
    </div>
  );
}
