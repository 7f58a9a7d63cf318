// Requests to /api/v1. Nothing else in the portal talks to the controller.
import type { ApiError } from "./models";

/** A request that failed. `status` 0: no answer came. */
export class ApiFailure extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly hint = "",
  ) {
    super(message);
  }

  /** Whether trying again later may help without anybody changing anything. */
  get isOutage(): boolean {
    return this.status === 0 || this.status >= 500;
  }
}

export interface Page<T> {
  items: T[];
  total: number;
}

const TIMEOUT_MS = 15_000;
let clockOffsetMs = 0;

/** Unix seconds by the controller's clock: a wrong clock here must not make ages wrong. */
export function serverNow(): number {
  return (Date.now() + clockOffsetMs) / 1000;
}

function noteServerClock(response: Response): void {
  const offset = Date.parse(response.headers.get("date") ?? "") - Date.now();
  // The header has whole seconds, and the answer took a while.
  clockOffsetMs = Math.abs(offset) > 3000 ? offset : 0;
}

async function failureOf(response: Response): Promise<ApiFailure> {
  try {
    const error = (await response.json()) as Partial<ApiError>;
    if (error.message) return new ApiFailure(response.status, error.code ?? "", error.message, error.hint);
  } catch {
    // Not ours: a proxy's page, for instance.
  }
  return new ApiFailure(response.status, "", `The controller answered with status ${response.status}.`);
}

/** The body of the answer, as text. Throws ApiFailure. */
export async function request(method: string, path: string, body?: unknown): Promise<string> {
  let response: Response;
  try {
    response = await fetch(`api/v1${path}`, {
      method,
      headers: body === undefined ? undefined : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
      cache: "no-store",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    noteServerClock(response);
    if (response.ok) return await response.text();
  } catch {
    throw new ApiFailure(0, "unreachable", "The controller does not answer.", "Check that it runs and that this machine reaches it.");
  }
  throw await failureOf(response);
}

/** A path whose parts are encoded: path`/nodes/${name}`. */
export function path(strings: TemplateStringsArray, ...parts: (string | number)[]): string {
  return strings.reduce((whole, text, i) => whole + text + (i < parts.length ? encodeURIComponent(parts[i]) : ""), "");
}

/** `base` with a query string, without what is empty. */
export function withQuery(base: string, parameters: Record<string, string | number>): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) if (value !== "") query.set(name, String(value));
  const text = query.toString();
  return text ? `${base}?${text}` : base;
}
