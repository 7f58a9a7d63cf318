// Tables whose searching, sorting and paging are done by the server: it has 8,000 GPUs, a page shows 25. In a narrow
// window each row becomes a card.
import type { ComponentChildren } from "preact";
import { useEffect, useId, useLayoutEffect, useRef, useState } from "preact/hooks";
import { type Page, withQuery } from "../api";
import { count } from "../format";
import { useLive } from "../live";
import { route, setQuery } from "../route";
import { Icon } from "./icons";
import { Failure, Loading } from "./parts";

const PAGE_SIZES = [25, 50, 100];
const WHOLE = 1000;
const TYPING_MS = 250;

export interface Column<T> {
  label: string;
  render: (row: T) => ComponentChildren;
  /** The field that the server sorts by. */
  sort?: string;
  /** Numbers are set flush right. */
  num?: boolean;
  /** Times are sorted from the newest. */
  time?: boolean;
  /** Names the row to screen readers. */
  head?: boolean;
  /** No label in a card. */
  wide?: boolean;
}

export interface Filter {
  name: string;
  label: string;
  options: [value: string, label: string][];
}

interface TableState {
  q: string;
  sort: string;
  page: number;
  size: number;
  filters: Record<string, string>;
}

/** The state of a table: in the address, so that it can be linked and gone back to, or for a table that is a part of a
 * page, in the component. */
function useTableState(inAddress: boolean, defaultSort: string, filters: Filter[]): [TableState, (changes: Record<string, string>, replace?: boolean) => void] {
  const [local, setLocal] = useState<Record<string, string>>({});
  const get = (name: string) => (inAddress ? (route.value.query.get(name) ?? "") : (local[name] ?? ""));
  const state: TableState = {
    q: get("q"),
    sort: get("sort") || defaultSort,
    page: Math.max(1, Number.parseInt(get("page"), 10) || 1),
    size: PAGE_SIZES.find((size) => String(size) === get("size")) ?? PAGE_SIZES[0],
    filters: Object.fromEntries(filters.map(({ name }) => [name, get(name)])),
  };
  return [state, (changes, replace = false) => (inAddress ? setQuery(changes, replace) : setLocal((old) => ({ ...old, ...changes })))];
}

interface DataTableProps<T> {
  label: string;
  list: string;
  columns: Column<T>[];
  rowKey: (row: T) => string;
  empty: ComponentChildren;
  defaultSort?: string;
  fixed?: Record<string, string>;
  filters?: Filter[];
  /** Placeholder of the search field; without it there is none. */
  search?: string;
  embedded?: boolean;
  tools?: ComponentChildren;
  everyMs?: number;
  onRows?: (rows: T[]) => void;
  /** Of a list that is short enough to be asked for as a whole: only these rows. */
  select?: (row: T) => boolean;
}

export function DataTable<T>(props: DataTableProps<T>) {
  const { label, list, columns, rowKey, empty, defaultSort = "", fixed = {}, filters = [], search, embedded = false } = props;
  const [state, change] = useTableState(!embedded, defaultSort, filters);
  const { select } = props;
  const start = (state.page - 1) * state.size;
  const query = { ...fixed, ...state.filters, q: state.q, sort: state.sort, limit: select ? WHOLE : state.size, offset: select ? 0 : start };
  const { data, failure, stale } = useLive<Page<T>>(withQuery(list, query), props.everyMs);
  const selected = select && data?.items.filter(select);
  const rows = selected?.slice(start, start + state.size) ?? data?.items ?? [];
  const total = selected?.length ?? data?.total ?? 0;
  const searched = state.q !== "" || Object.values(state.filters).some(Boolean);

  // The row in which somebody was may have gone, as that of a task that was ended: without this the focus would be lost.
  const focused = useRef<Element | null>(null);
  useLayoutEffect(() => {
    if (focused.current && !focused.current.isConnected && document.activeElement === document.body) document.getElementById("title")?.focus();
    if (!focused.current?.isConnected) focused.current = null;
  });

  const { onRows } = props;
  useEffect(() => onRows?.(rows), [data]);
  // Rows may have gone while somebody was on the last page.
  const pages = Math.max(1, Math.ceil(total / state.size));
  useEffect(() => {
    if (data && !stale && state.page > pages) change({ page: pages > 1 ? String(pages) : "" }, true);
  }, [data, stale, pages, state.page]);

  return (
    <div class="data-table" onFocusIn={(event) => (focused.current = event.target as Element)}>
      {(search || filters.length > 0 || props.tools) && (
        <div class="table-tools">
          {search && <Search label={search} value={state.q} onSearch={(q) => change({ q, page: "" }, true)} />}
          {filters.map((filter) => (
            <Select key={filter.name} label={filter.label} value={state.filters[filter.name]} options={filter.options} onChange={(value) => change({ [filter.name]: value, page: "" })} />
          ))}
          <SortSelect columns={columns} sort={state.sort} onSort={(sort) => change({ sort, page: "" })} />
          {props.tools && <div class="table-tools-end">{props.tools}</div>}
        </div>
      )}
      {failure && <Failure failure={failure} />}
      {!failure && !data && <Loading />}
      {data && rows.length === 0 && (
        <div class="empty">
          {searched ? (
            <>
              <p>Nothing matches.</p>
              <button type="button" class="button" onClick={() => change({ q: "", page: "", ...Object.fromEntries(filters.map(({ name }) => [name, ""])) })}>
                Show all
              </button>
            </>
          ) : (
            <p>{empty}</p>
          )}
        </div>
      )}
      {rows.length > 0 && (
        <div class={stale ? "table-scroll stale" : "table-scroll"}>
          <table role="table" aria-label={label}>
            <thead role="rowgroup">
              <tr role="row">
                {columns.map((column) => (
                  <HeadCell key={column.label} column={column} sort={state.sort} onSort={(sort) => change({ sort, page: "" })} />
                ))}
              </tr>
            </thead>
            <tbody role="rowgroup">
              {rows.map((row) => (
                <tr role="row" key={rowKey(row)}>
                  {columns.map((column) => cell(column, row))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <Count label={label} shown={data !== null && !stale} total={total} searched={searched} />
      {(total > PAGE_SIZES[0] || state.page > 1) && <Pager label={label} state={state} total={total} pages={pages} onChange={change} />}
    </div>
  );
}

function cell<T>(column: Column<T>, row: T) {
  const classes = `${column.num ? "cell-num" : ""} ${column.wide ? "cell-wide" : ""} ${column.head ? "cell-head" : ""}`;
  const content = (
    <>
      {!column.wide && <span class="card-label">{column.label}</span>}
      <span class="cell-value">{column.render(row)}</span>
    </>
  );
  return column.head ? (
    <th key={column.label} role="rowheader" scope="row" class={classes}>
      {content}
    </th>
  ) : (
    <td key={column.label} role="cell" class={classes}>
      {content}
    </td>
  );
}

function HeadCell<T>({ column, sort, onSort }: { column: Column<T>; sort: string; onSort: (sort: string) => void }) {
  const field = column.sort;
  const ascending = field !== undefined && sort === field;
  const descending = field !== undefined && sort === `-${field}`;
  return (
    <th role="columnheader" scope="col" class={column.num ? "cell-num" : column.wide ? "cell-wide" : ""} aria-sort={ascending ? "ascending" : descending ? "descending" : undefined}>
      {field ? (
        // Numbers and times are mostly looked at from the top.
        <button type="button" class="sort" onClick={() => onSort(ascending ? `-${field}` : descending ? field : column.num || column.time ? `-${field}` : field)}>
          {column.label}
          <Icon name={ascending ? "up" : descending ? "down" : "sort"} />
        </button>
      ) : (
        column.label
      )}
    </th>
  );
}

/** How many were found, read out after a search. */
function Count({ label, shown, total, searched }: { label: string; shown: boolean; total: number; searched: boolean }) {
  return (
    <p class="hidden" role="status">
      {shown && searched ? `${label}: ${count(total)} found` : ""}
    </p>
  );
}

function Search({ label, value, onSearch }: { label: string; value: string; onSearch: (q: string) => void }) {
  const id = useId();
  const [text, setText] = useState(value);
  const sent = useRef(value);
  const timer = useRef(0);
  useEffect(() => {
    // Changed from elsewhere: back, forward, "show all".
    if (value !== sent.current) {
      sent.current = value;
      setText(value);
    }
  }, [value]);
  useEffect(() => () => clearTimeout(timer.current), []);
  function typed(next: string): void {
    setText(next);
    clearTimeout(timer.current);
    timer.current = window.setTimeout(() => {
      sent.current = next.trim();
      onSearch(sent.current);
    }, TYPING_MS);
  }
  return (
    <div class="search">
      <label class="hidden" for={id}>
        {label}
      </label>
      <Icon name="search" />
      <input id={id} type="search" value={text} placeholder={label} autocomplete="off" maxLength={200} onInput={(event) => typed(event.currentTarget.value)} />
    </div>
  );
}

function Select({ label, value, options, onChange, narrow = false }: { label: string; value: string; options: [string, string][]; onChange: (value: string) => void; narrow?: boolean }) {
  const id = useId();
  return (
    <div class={narrow ? "select only-narrow" : "select"}>
      <label for={id}>{label}</label>
      <select id={id} value={value} onChange={(event) => onChange(event.currentTarget.value)}>
        {options.map(([option, text]) => (
          <option key={option} value={option}>
            {text}
          </option>
        ))}
      </select>
    </div>
  );
}

/** Cards have no head row to sort by. */
function SortSelect<T>({ columns, sort, onSort }: { columns: Column<T>[]; sort: string; onSort: (sort: string) => void }) {
  const options: [string, string][] = [["", "As it comes"]];
  for (const column of columns) {
    if (!column.sort) continue;
    const [up, down] = column.num ? ["lowest first", "highest first"] : column.time ? ["oldest first", "newest first"] : ["A to Z", "Z to A"];
    options.push([column.sort, `${column.label}, ${up}`], [`-${column.sort}`, `${column.label}, ${down}`]);
  }
  return options.length > 1 ? <Select label="Sort by" value={sort} options={options} onChange={onSort} narrow /> : null;
}

function Pager({ label, state, total, pages, onChange }: { label: string; state: TableState; total: number; pages: number; onChange: (changes: Record<string, string>) => void }) {
  const first = (state.page - 1) * state.size + 1;
  const to = (page: number) => onChange({ page: page > 1 ? String(page) : "" });
  return (
    <nav class="pager" aria-label={`Pages of ${label}`}>
      <span class="num">
        {total === 0 ? "0" : `${count(Math.min(first, total))}–${count(Math.min(total, first + state.size - 1))}`} of {count(total)}
      </span>
      <Select label="Rows" value={String(state.size)} options={PAGE_SIZES.map((size) => [String(size), String(size)])} onChange={(size) => onChange({ size: size === String(PAGE_SIZES[0]) ? "" : size, page: "" })} />
      <div class="pager-buttons">
        <button type="button" class="button button-icon" aria-label="Previous page" disabled={state.page <= 1} onClick={() => to(state.page - 1)}>
          <Icon name="left" />
        </button>
        <span class="num" aria-current="page">
          {count(state.page)} / {count(pages)}
        </span>
        <button type="button" class="button button-icon" aria-label="Next page" disabled={state.page >= pages} onClick={() => to(state.page + 1)}>
          <Icon name="right" />
        </button>
      </div>
    </nav>
  );
}
