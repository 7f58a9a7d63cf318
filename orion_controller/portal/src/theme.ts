import { signal } from "@preact/signals";

export type Theme = "system" | "light" | "dark";

const KEY = "orion-theme";
const chosen = document.documentElement.dataset.theme;

export const theme = signal<Theme>(chosen === "light" || chosen === "dark" ? chosen : "system");
/** Counts changes of the colours, for what is drawn and not styled: plots. */
export const paint = signal(0);

export function setTheme(next: Theme): void {
  theme.value = next;
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    if (next === "system") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, next);
  } catch {
    // Storage is refused: the choice lasts as long as the page.
  }
  paint.value++;
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint.value++);
