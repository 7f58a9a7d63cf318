// Who is logged in. The token is in a cookie that scripts cannot read; the server decides what a role may do.
import { computed, signal } from "@preact/signals";
import { ApiFailure, request } from "./api";
import type { LoggedIn, Me } from "./models";

export const me = signal<Me | null>(null);
/** False until the controller has said who we are. */
export const known = signal(false);
/** Why the log-in page is shown although somebody was logged in. */
export const farewell = signal("");
export const isOperator = computed(() => me.value?.role === "operator");

/** Throws ApiFailure where the controller cannot be asked. */
export async function findMe(): Promise<void> {
  try {
    me.value = JSON.parse(await request("GET", "/me")) as Me;
  } catch (error) {
    if (!(error instanceof ApiFailure) || error.status !== 401) throw error;
    me.value = null;
  }
  known.value = true;
}

export async function logIn(user: string, password: string): Promise<void> {
  const { user: name, role } = JSON.parse(await request("POST", "/login", { user, password })) as LoggedIn;
  farewell.value = "";
  me.value = { user: name, role };
}

export async function logOut(): Promise<void> {
  await request("POST", "/logout");
  farewell.value = "You have logged out.";
  me.value = null;
}

export function sessionEnded(): void {
  if (me.value) farewell.value = "Your log-in has expired. Log in again to go on.";
  me.value = null;
}
