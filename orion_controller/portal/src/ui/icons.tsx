// Drawn on a 20 x 20 grid with lines of 1.6. Always beside text, and so hidden from screen readers.
const PATHS = {
  overview: "M3 3h6v6H3zM11 3h6v4h-6zM11 9h6v8h-6zM3 11h6v6H3z",
  nodes: "M3 3.5h14v5H3zM3 11.5h14v5H3zM6 6h.01M6 14h.01M9.5 6H14M9.5 14H14",
  gpus: "M5 5h10v10H5zM8 8h4v4H8zM8 2v3M12 2v3M8 15v3M12 15v3M2 8h3M2 12h3M15 8h3M15 12h3",
  groups: "M3 7l7-4 7 4-7 4zM3 10.5l7 4 7-4M3 14l7 4 7-4",
  vgpus: "M3 3h9v9H3zM8 8h9v9H8z",
  tasks: "M3 4h14v12H3zM6 8l2.5 2L6 12M10.5 12.5H14",
  queue: "M3 5h14M3 10h10M3 15h6",
  limits: "M3 14a7 7 0 1 1 14 0M10 14l4-4",
  events: "M10 3v7l4 2.5M10 2.5a7.5 7.5 0 1 0 .01 0z",
  audit: "M5 2.5h7l3.5 3.5v11.5H5zM8 9h5M8 12h5M8 15h3",
  menu: "M3 5h14M3 10h14M3 15h14",
  close: "M5 5l10 10M15 5L5 15",
  light: "M10 6.5a3.5 3.5 0 1 0 .01 0zM10 1.5v2M10 16.5v2M1.5 10h2M16.5 10h2M4 4l1.4 1.4M14.6 14.6L16 16M16 4l-1.4 1.4M5.4 14.6L4 16",
  dark: "M16.5 12A7 7 0 0 1 8 3.5 7 7 0 1 0 16.5 12z",
  system: "M2.5 3.5h15v10h-15zM7 17h6M10 13.5V17",
  up: "M5 12l5-5 5 5",
  down: "M5 8l5 5 5-5",
  sort: "M6.5 8L10 4.5 13.5 8M6.5 12l3.5 3.5 3.5-3.5",
  left: "M12 5l-5 5 5 5",
  right: "M8 5l5 5-5 5",
  search: "M9 3.5a5.5 5.5 0 1 0 .01 0zM13 13l4 4",
  check: "M4 10.5l4 4 8-9",
  warning: "M10 3l8 14H2zM10 8v4M10 14.5h.01",
  cross: "M6 6l8 8M14 6l-8 8",
  pause: "M7 5v10M13 5v10",
  info: "M10 2.5a7.5 7.5 0 1 0 .01 0zM10 9v5M10 6.2h.01",
  clock: "M10 2.5a7.5 7.5 0 1 0 .01 0zM10 6v4.5l3 1.5",
  dot: "M10 8.5a1.5 1.5 0 1 0 .01 0z",
  logout: "M8 3H3.5v14H8M12 6l4 4-4 4M16 10H7",
  plus: "M10 4v12M4 10h12",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 20 20" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} />
    </svg>
  );
}

export function Logo() {
  return (
    <svg class="logo" viewBox="0 0 32 32" aria-hidden="true" focusable="false">
      <path class="logo-line" d="M5 24.5 27 7.5" />
      <circle cx="8" cy="22" r="3.2" />
      <circle cx="16" cy="16" r="3.8" />
      <circle cx="24" cy="10" r="3.2" />
    </svg>
  );
}
