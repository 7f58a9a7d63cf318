// Deep links after "#": the controller serves one page, and no path of it needs to be known to a proxy.
import { signal } from "@preact/signals";

export interface Route {
  parts: string[];
  query: URLSearchParams;
}

function parse(): Route {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const parts = path.split("/").filter(Boolean).map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  return { parts, query: new URLSearchParams(query) };
}

export const route = signal<Route>(parse());

function update(): void {
  route.value = parse();
}

window.addEventListener("hashchange", update);
window.addEventListener("popstate", update);

/** The address of a page: href("nodes", "gpu-01"). */
export function href(...parts: (string | number)[]): string {
  return `#/${parts.map(encodeURIComponent).join("/")}`;
}

/** Changes the query of the page that is shown. `replace`: not a step that "back" goes to (typing). */
export function setQuery(changes: Record<string, string>, replace: boolean): void {
  const query = new URLSearchParams(route.value.query);
  for (const [name, value] of Object.entries(changes)) {
    if (value === "") query.delete(name);
    else query.set(name, value);
  }
  const text = query.toString();
  const url = href(...route.value.parts) + (text ? `?${text}` : "");
  if (replace) history.replaceState(null, "", url);
  else history.pushState(null, "", url);
  update();
}
