import type { ComponentChildren, FunctionComponent } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiFailure } from "./api";
import { clockTime, count } from "./format";
import { clock, outage, refreshAll, useLive } from "./live";
import type { Summary } from "./models";
import { AuditPage, EventsPage } from "./pages/events";
import { GpuPage, GpusPage } from "./pages/gpus";
import { GroupPage, GroupsPage, VgpusPage } from "./pages/groups";
import { LimitsPage } from "./pages/limits";
import { Login } from "./pages/login";
import { NodePage, NodesPage } from "./pages/nodes";
import { Overview } from "./pages/overview";
import { QueuePage, TasksPage } from "./pages/tasks";
import { href, route } from "./route";
import { farewell, findMe, known, logOut, me } from "./session";
import { type Theme, setTheme, theme } from "./theme";
import { closeDialog, DialogHost } from "./ui/dialog";
import { Icon, type IconName, Logo } from "./ui/icons";
import { Failure, Heading, Loading } from "./ui/parts";
import { toast, Toasts } from "./ui/toast";

interface Place {
  name: string;
  label: string;
  icon: IconName;
  page: FunctionComponent;
  detail?: FunctionComponent<{ parts: string[] }>;
  /** How many parts after the name a detail page has. */
  depth?: number;
}

const PLACES: Place[] = [
  { name: "", label: "Overview", icon: "overview", page: Overview },
  { name: "nodes", label: "Nodes", icon: "nodes", page: NodesPage, detail: NodePage, depth: 1 },
  { name: "gpus", label: "GPUs", icon: "gpus", page: GpusPage, detail: GpuPage, depth: 2 },
  { name: "groups", label: "Groups", icon: "groups", page: GroupsPage, detail: GroupPage, depth: 1 },
  { name: "vgpus", label: "vGPUs", icon: "vgpus", page: VgpusPage },
  { name: "tasks", label: "Tasks", icon: "tasks", page: TasksPage },
  { name: "queue", label: "Queue", icon: "queue", page: QueuePage },
  { name: "limits", label: "Limits", icon: "limits", page: LimitsPage },
  { name: "events", label: "Events", icon: "events", page: EventsPage },
  { name: "audit", label: "Audit trail", icon: "audit", page: AuditPage },
];

export function App() {
  const [failure, setFailure] = useState<ApiFailure | null>(null);
  useEffect(() => {
    let timer = 0;
    const ask = (): void => {
      findMe().then(
        () => setFailure(null),
        (error) => {
          setFailure(error instanceof ApiFailure ? error : new ApiFailure(0, "", String(error)));
          timer = window.setTimeout(ask, 3000);
        },
      );
    };
    ask();
    return () => clearTimeout(timer);
  }, []);
  const loggedIn = me.value !== null;
  useEffect(() => {
    if (!loggedIn) {
      closeDialog();
      document.title = "Log in · Orion";
    }
  }, [loggedIn]);
  return (
    <>
      {loggedIn ? (
        <Shell />
      ) : known.value ? (
        <Login />
      ) : (
        <main class="login" id="main">
          {failure ? <Failure failure={failure} /> : <Loading />}
        </main>
      )}
      <DialogHost />
      <Toasts />
    </>
  );
}

function Shell() {
  const { parts } = route.value;
  const place = PLACES.find(({ name }) => name === (parts[0] ?? ""));
  const isDetail = place?.detail !== undefined && parts.length > 1;
  const found = place && (parts.length <= 1 || (isDetail && parts.length === 1 + place.depth!));
  const page = parts.join("/");
  const [menu, setMenu] = useState(false);

  // A new page is announced by the focus on its heading; not on the first one, where the focus is at the top anyway.
  const first = useRef(true);
  useEffect(() => {
    document.title = `${!found ? "Not found" : isDetail ? parts.slice(1).join("/") : place.label} · Orion`;
    setMenu(false);
    if (!first.current) {
      window.scrollTo(0, 0);
      document.getElementById("title")?.focus({ preventScroll: true });
    }
    first.current = false;
  }, [page]);

  let content: ComponentChildren = <NotFound />;
  if (found) {
    const { page: List, detail: Detail } = place;
    content = isDetail && Detail ? <Detail key={page} parts={parts.slice(1)} /> : <List key={page} />;
  }
  return (
    <div class="shell">
      <a
        class="skip"
        href="#main"
        onClick={(event) => {
          event.preventDefault();
          document.getElementById("main")?.focus();
        }}
      >
        Skip to the content
      </a>
      <Side current={place?.name} menu={menu} onMenu={setMenu} />
      <main id="main" class="main" tabIndex={-1}>
        <OutageNote />
        {content}
      </main>
    </div>
  );
}

function NotFound() {
  return (
    <>
      <Heading title="There is no such page" />
      <p>
        <a href={href()}>Go to the overview</a>
      </p>
    </>
  );
}

function Side({ current, menu, onMenu }: { current: string | undefined; menu: boolean; onMenu: (open: boolean) => void }) {
  const { data: summary } = useLive<Summary>("/summary");
  const badges: Record<string, number> = { queue: summary?.queue ?? 0 };
  return (
    <header
      class="side"
      onKeyDown={(event) => {
        if (event.key === "Escape" && menu) {
          onMenu(false);
          document.getElementById("menu-button")?.focus();
        }
      }}
    >
      <div class="side-top">
        <a class="brand" href={href()} aria-label="Orion, overview">
          <Logo />
          <span>Orion</span>
        </a>
        <button id="menu-button" type="button" class="button button-quiet menu-button" aria-expanded={menu} aria-controls="menu" onClick={() => onMenu(!menu)}>
          <Icon name={menu ? "close" : "menu"} />
          Menu
        </button>
      </div>
      <div id="menu" class={menu ? "menu menu-open" : "menu"}>
        <nav aria-label="Pages">
          <ul>
            {PLACES.map(({ name, label, icon }) => (
              <li key={name}>
                <a class="nav-link" href={href(...(name ? [name] : []))} aria-current={name === current ? "page" : undefined} onClick={() => onMenu(false)}>
                  <Icon name={icon} />
                  {label}
                  {badges[name] > 0 && (
                    <span class="nav-count">
                      {count(badges[name])}
                      <span class="hidden"> waiting</span>
                    </span>
                  )}
                </a>
              </li>
            ))}
          </ul>
        </nav>
        <div class="side-foot">
          <ThemeChoice />
          <User />
          {summary && (
            <p class="version">
              <span>{summary.controller}</span> {summary.leader ? "leads" : "follows"}, version {summary.version}
            </p>
          )}
        </div>
      </div>
    </header>
  );
}

function ThemeChoice() {
  const themes: [Theme, string][] = [
    ["system", "As the system"],
    ["light", "Light"],
    ["dark", "Dark"],
  ];
  return (
    <fieldset class="themes">
      <legend class="hidden">Theme</legend>
      {themes.map(([name, label]) => (
        <label key={name} title={label}>
          <input type="radio" name="theme" value={name} checked={theme.value === name} onChange={() => setTheme(name)} />
          <Icon name={name} />
          <span class="hidden">{label}</span>
        </label>
      ))}
    </fieldset>
  );
}

function User() {
  return (
    <div class="user">
      <span class="user-name">
        <strong>{me.value?.user}</strong>
        <span class="muted">{me.value?.role}</span>
      </span>
      <button
        type="button"
        class="button button-quiet button-icon"
        aria-label="Log out"
        title="Log out"
        onClick={() =>
          logOut().catch((error) => {
            // The cookie is still valid: saying that somebody is logged out would not be true.
            if (error instanceof ApiFailure && error.status === 401) me.value = null;
            else toast(`Not logged out: ${error instanceof Error ? error.message : error}`);
            farewell.value = "";
          })
        }
      >
        <Icon name="logout" />
      </button>
    </div>
  );
}

function OutageNote() {
  const lost = outage.value;
  const was = useRef(false);
  useEffect(() => {
    if (was.current && !lost) toast("Connected again.");
    was.current = lost !== null;
  }, [lost !== null]);
  // Counts with the clock; only the sentence before it is read out.
  const seconds = lost && clock.value ? Math.max(0, Math.ceil((lost.nextTryMs - performance.now()) / 1000)) : 0;
  return (
    <div class="outage-place">
      <div role="alert">
        {lost && (
          <p class="outage">
            <Icon name="warning" />
            <span>
              <strong>Not connected since {clockTime(lost.sinceS)}.</strong> What you see is from then.
            </span>
          </p>
        )}
      </div>
      {lost && (
        <div class="outage-try">
          <span class="num">{seconds > 0 ? `Next try in ${seconds} s` : "Trying…"}</span>
          <button type="button" class="button" onClick={refreshAll}>
            Try now
          </button>
        </div>
      )}
    </div>
  );
}
