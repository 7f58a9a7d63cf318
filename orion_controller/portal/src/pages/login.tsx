import { useState } from "preact/hooks";
import { ApiFailure } from "../api";
import { farewell, logIn } from "../session";
import { Logo } from "../ui/icons";
import { Failure } from "../ui/parts";

export function Login() {
  const [failure, setFailure] = useState<ApiFailure | null>(null);
  const [busy, setBusy] = useState(false);
  const [seen, setSeen] = useState(false);
  async function submit(event: SubmitEvent): Promise<void> {
    event.preventDefault();
    if (busy) return;
    const form = event.currentTarget as HTMLFormElement;
    const fields = new FormData(form);
    setBusy(true);
    try {
      await logIn(String(fields.get("user")), String(fields.get("password")));
    } catch (error) {
      setFailure(error instanceof ApiFailure ? error : new ApiFailure(0, "", String(error)));
      setBusy(false);
      form.querySelector<HTMLInputElement>("[name=password]")?.select();
    }
  }
  const password = { id: "password", name: "password", required: true, maxLength: 256, autocomplete: "current-password" } as const;
  return (
    <main class="login" id="main">
      <form class="login-card" onSubmit={submit}>
        <div class="brand">
          <Logo />
          <span>Orion</span>
        </div>
        <h1 id="title" tabIndex={-1}>
          Log in to the pool
        </h1>
        {farewell.value && !failure && (
          <p class="sub" role="status">
            {farewell.value}
          </p>
        )}
        {failure && <Failure failure={failure} />}
        <div class="field">
          <label for="user">User</label>
          <input id="user" name="user" required maxLength={64} autocomplete="username" autocapitalize="none" spellcheck={false} autoFocus />
        </div>
        <div class="field">
          <label for="password">Password</label>
          <div class="with-button">
            {seen ? <input type="text" {...password} /> : <input type="password" {...password} />}
            <button type="button" class="button button-quiet" aria-pressed={seen} aria-label="Show the password" onClick={() => setSeen(!seen)}>
              {seen ? "Hide" : "Show"}
            </button>
          </div>
        </div>
        <button type="submit" class="button button-primary button-large" aria-disabled={busy}>
          {busy ? "Logging in…" : "Log in"}
        </button>
        <p class="login-hint">The first operator's password is made at the controller's first start and shown once, in its output.</p>
      </form>
    </main>
  );
}
