// The page's own script: the table, the drawer, the charts, and what changes while it is open. Text is set as text.
"use strict";
(() => {
  const $ = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const query = document.body.dataset.query;
  const FIRST = 25; // rows shown at first, as in the page itself
  const STEP = 100; // rows added at a time
  const LOOK_MS = 2000; // between looks at what runs
  const rows = new Map();
  let version = document.body.dataset.version;
  let shown = FIRST;
  let sorted = { by: "n", down: true };
  let best = $("#table tr.best")?.dataset.id;
  const drawn = new Map();

  // ---------------------------------------------------------------------------------------------- asking

  async function ask(path) {
    const answer = await fetch(path, { credentials: "same-origin" });
    if (answer.status === 401) {
      over();
      throw new Error("signed out");
    }
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return answer;
  }
  const with_query = (path, more = {}) => `${path}?${query}&${new URLSearchParams(more)}`;

  function pulse(state, text) {
    $("#pulse").dataset.state = state;
    if ($("#pulse-text").textContent !== text) $("#pulse-text").textContent = text;
  }

  function over() {
    if (events) events.close();
    pulse("lost", "signed out");
    const notice = $("#notice");
    notice.hidden = false;
    notice.textContent = "You are signed out: the token was revoked, replaced or is over. What is shown no longer changes. ";
    const again = document.createElement("a");
    again.href = "/";
    again.textContent = "Sign in again";
    notice.append(again);
  }

  // ----------------------------------------------------------------------------------------------- table

  const LIVE = new Set(["running", "queued"]);
  const KEYS = {
    n: (row) => row.n, tried: (row) => row.tried.toLowerCase(), metric: (row) => row.metric, gain: (row) => row.gain,
    p: (row) => row.p, mark: (row) => row.said, family: (row) => row.family, seconds: (row) => row.seconds, at: (row) => row.at,
  };

  function matching() {
    const words = $("#filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const mark = $("#by-mark").value;
    const family = $("#by-family").value;
    const found = [...rows.values()].filter((row) => {
      if (mark === "live" ? !LIVE.has(row.mark) : mark && row.mark !== mark) return false;
      if (family && row.family !== family) return false;
      const text = `${row.tried} ${row.id} ${row.said} ${row.family}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    const key = KEYS[sorted.by];
    const way = sorted.down ? -1 : 1;
    return found.sort((one, other) => {
      const a = key(one), b = key(other);
      if (a === null || a === undefined) return b === null || b === undefined ? other.n - one.n : 1; // nothing comes last
      if (b === null || b === undefined) return -1;
      return a === b ? other.n - one.n : a < b ? -way : way;
    });
  }

  function cell(tag, classes, text) {
    const made = document.createElement(tag);
    if (classes) made.className = classes;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function line(row) {
    const made = cell("tr", `${row.id === best ? "best" : ""} ${row.other ? "other" : ""}`.trim());
    made.dataset.id = row.id;
    const head = cell("th");
    head.scope = "row";
    const link = cell("a", "", row.tried);
    link.href = `#${row.id}`;
    head.append(link);
    if (row.id === best) head.append(" ", cell("span", "tag", "best"));
    if (row.seed !== 42) head.append(" ", cell("span", "dim", `seed ${row.seed}`));
    const value = cell("td", "num", row.value);
    if (row.origin) value.append(" ", cell("span", "dim", row.origin));
    const mark = cell("td");
    mark.append(cell("span", `mark ${row.mark}`, row.said));
    made.append(
      cell("td", "num dim", row.n), head, value, cell("td", "num", row.gained), cell("td", "num wide", row.sure),
      mark, cell("td", "wide", row.family), cell("td", "num wide", row.took), cell("td", "num wide dim", row.when),
    );
    return made;
  }

  function show_rows() {
    const found = matching();
    const focused = document.activeElement && document.activeElement.closest("#table tbody tr");
    const focus = focused ? focused.dataset.id : null;
    $("#table tbody").replaceChildren(...found.slice(0, shown).map(line));
    if (focus) $(`#table tbody tr[data-id="${CSS.escape(focus)}"] a`)?.focus({ preventScroll: true });
    const total = `${rows.size.toLocaleString("en")} experiment${rows.size === 1 ? "" : "s"}`;
    const count = found.length === rows.size ? total : `${found.length.toLocaleString("en")} of ${total}`;
    if ($("#count").textContent !== count) $("#count").textContent = count;
    $("#none").hidden = found.length > 0;
    const left = found.length - shown;
    $("#more").hidden = left <= 0;
    $("#more").textContent = `Show ${Math.min(left, STEP)} more of ${left.toLocaleString("en")}`;
  }

  function sort_by(by) {
    sorted = { by, down: sorted.by === by ? !sorted.down : by !== "tried" && by !== "mark" && by !== "family" };
    for (const head of all("#table thead th")) {
      if ($("button", head).dataset.sort === by) head.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    show_rows();
  }

  // ---------------------------------------------------------------------------------------------- charts

  const dark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const tooltip = { disableDefaultStyle: true, offsetX: 14, offsetY: 14 };

  const vega = $("#vega");
  const drawing = new Promise((ready, failed) => {
    if (window.vegaEmbed) ready();
    vega.addEventListener("load", ready);
    vega.addEventListener("error", () => failed(new Error("what draws charts could not be loaded")));
  });

  async function draw(figure) {
    const plot = $(".plot", figure);
    const width = Math.floor(plot.clientWidth);
    if (!width) return;
    await drawing;
    const asked = { theme: dark() ? "dark" : "light", width };
    if (figure.dataset.chart === "progress") asked.x = $('input[name="across"]:checked').value;
    if (figure.dataset.id) asked.id = figure.dataset.id;
    const spec = await (await ask(with_query(`/charts/${figure.dataset.chart}`, asked))).json();
    const before = drawn.get(plot);
    figure.classList.toggle("empty", spec === null);
    if (spec === null) {
      before?.finalize();
      drawn.delete(plot);
      plot.removeAttribute("role");
      plot.removeAttribute("aria-label");
      plot.replaceChildren(cell("p", "none", figure.dataset.empty || "Nothing to draw yet."));
      return;
    }
    spec.background = "transparent";
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", spec.description);
    const made = await vegaEmbed(plot, spec, { actions: false, ast: true, defaultStyle: false, renderer: "svg", tooltip });
    before?.finalize();
    drawn.set(plot, made);
    $("svg", plot).setAttribute("aria-hidden", "true"); // the label says it; its marks are no text to be read out
    made.view.addEventListener("click", (_, item) => {
      if (item && item.datum && item.datum.id) location.hash = item.datum.id;
    });
  }

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      entry.target.dataset.seen = "yes";
      (entry.target.dataset.chart ? draw(entry.target) : fill(entry.target)).catch(report);
    }
  }, { rootMargin: "300px" });

  function watch(within = document) {
    for (const each of all("[data-chart], [data-section]", within)) if (!each.dataset.seen) seen.observe(each);
  }

  function report(error) {
    if (error.message !== "signed out") console.warn(error.message);
  }

  async function fill(section) {
    const open = all("details[open]", section).map((each) => $("summary", each).textContent);
    section.innerHTML = await (await ask(with_query(`/sections/${section.dataset.section}`))).text();
    for (const each of all("details", section)) if (open.includes($("summary", each).textContent)) each.open = true;
  }

  function redraw() {
    for (const each of all('[data-seen="yes"]')) {
      if (each.closest("#drawer-body")) continue;
      (each.dataset.chart ? draw(each) : fill(each)).catch(report);
    }
  }

  // ---------------------------------------------------------------------------------------------- drawer

  const drawer = $("#drawer");

  async function open_drawer() {
    const id = decodeURIComponent(location.hash.slice(1));
    if (!/^exp_\w+$/.test(id)) {
      if (drawer.open) drawer.close();
      return;
    }
    const body = $("#drawer-body");
    body.innerHTML = await (await ask(`/experiments/${encodeURIComponent(id)}`)).text();
    if (!drawer.open) drawer.showModal();
    drawer.scrollTop = 0;
    $("[data-close]", body).focus();
    watch(body);
  }

  drawer.addEventListener("close", () => {
    const id = location.hash.slice(1);
    if (id) history.replaceState(null, "", location.pathname + location.search);
    $(`#table tbody tr[data-id="${CSS.escape(id)}"] a`)?.focus({ preventScroll: true });
  });
  drawer.addEventListener("click", (event) => {
    if (event.target === drawer || event.target.closest("[data-close]")) drawer.close();
  });

  // ------------------------------------------------------------------------------------------------ live

  let events = null;
  let asking = null;

  async function take_changes() {
    if (asking) return asking.then(take_changes);
    asking = (async () => {
      const body = await (await ask(with_query("/changes", { since: rows.size ? version : "" }))).json();
      const first = !rows.size;
      const moved = body.version !== version;
      for (const row of body.rows) rows.set(row.id, row);
      version = body.version;
      best = body.best;
      show_rows();
      if (moved || !first) {
        all("#summary [data-chart] .plot").forEach((plot) => { drawn.get(plot)?.finalize(); drawn.delete(plot); });
        $("#summary").innerHTML = body.summary;
        watch($("#summary"));
        redraw();
      }
    })();
    try { await asking; } finally { asking = null; }
  }

  async function look() {
    if (document.hidden) return;
    const running = all("#summary article.run");
    if (!running.length) return;
    for (const each of await (await ask(with_query("/now"))).json()) {
      const card = running.find((one) => one.dataset.id === each.id);
      if (!card) continue;
      $(".phase", card).textContent = each.phase;
      $(".left", card).textContent = each.left ? `, about ${each.left} left` : "";
      const bar = $("progress", card);
      if (bar && each.percent !== null) bar.value = each.percent;
      const figure = $("[data-chart]", card);
      if (figure && figure.dataset.seen) await draw(figure);
    }
  }

  function listen() {
    events = new EventSource(with_query("/events", { since: version }));
    events.addEventListener("open", () => pulse("live", "live"));
    events.addEventListener("changed", () => take_changes().catch(report));
    events.addEventListener("error", () => {
      pulse("lost", "connecting again");
      ask(with_query("/now")).catch(() => {}); // says whether we are signed out
    });
  }

  // ----------------------------------------------------------------------------------------------- start

  const kept = localStorage.getItem("theme");
  if (kept) document.documentElement.dataset.theme = kept;
  $("#theme").addEventListener("click", () => {
    const chosen = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = chosen;
    localStorage.setItem("theme", chosen);
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  for (const [id, name] of [["#workspace", "w"], ["#setting", "c"]]) {
    $(id)?.addEventListener("change", (event) => {
      const asked = new URLSearchParams(name === "w" ? "" : query);
      asked.set(name, event.target.value);
      location.search = asked;
    });
  }
  for (const button of all("[data-sort]")) button.addEventListener("click", () => sort_by(button.dataset.sort));
  for (const id of ["#filter", "#by-mark", "#by-family"]) {
    $(id).addEventListener("input", () => { shown = FIRST; show_rows(); });
  }
  $("#filters").addEventListener("submit", (event) => event.preventDefault());
  $("#clear").addEventListener("click", () => { $("#filters").reset(); show_rows(); $("#filter").focus(); });
  $("#more").addEventListener("click", () => { shown += STEP; show_rows(); });
  $("#table tbody").addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-id]");
    if (row && !event.target.closest("a") && !String(getSelection())) location.hash = row.dataset.id;
  });
  for (const each of all('input[name="across"]')) {
    each.addEventListener("change", () => draw($('[data-chart="progress"]')).catch(report));
  }
  addEventListener("hashchange", () => open_drawer().catch(report));
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName);
    if (event.key === "/" && !typing && !drawer.open) {
      event.preventDefault();
      $("#filter").focus();
    }
  });
  let settled = null;
  let wide = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === wide) return;
    wide = innerWidth;
    clearTimeout(settled);
    settled = setTimeout(redraw, 200);
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look().catch(report); });
  setInterval(() => look().catch(report), LOOK_MS);
  watch();
  take_changes().catch(report);
  listen();
  open_drawer().catch(report);
})();
