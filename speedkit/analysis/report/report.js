"use strict";
(() => {
  const runs = JSON.parse(document.getElementById("report-data").textContent);
  const status = document.getElementById("status");
  const explorers = new Map();

  class Explorer {
    constructor(run) {
      this.run = run;
      this.section = document.getElementById(run.key);
      this.panel = this.section.querySelector(".panel");
      this.canvas = this.section.querySelector(".canvas");
      this.walk = this.section.querySelector(".walk");
      this.across = this.canvas.querySelector("svg").classList.contains("across");
      this.articles = new Map();
      this.links = new Map();
      for (const node of run.nodes) {
        const key = this.key(node.id);
        this.articles.set(node.id, document.getElementById(key));
        this.links.set(node.id, this.canvas.querySelector(`a[href="#${key}"]`));
      }
      this.readTree();
      this.canvas.addEventListener("keydown", (event) => this.onKey(event));
      this.walk.addEventListener("click", (event) => this.onButton(event));
      const fold = this.section.closest("details");
      fold?.addEventListener("toggle", () => this.reveal(this.links.get(this.selected)));
      this.walk.hidden = false;
      this.all = false;
      this.select(Number(this.panel.dataset.start));
      this.announce = true;
    }

    key(id) { return `${this.run.key}-n${id}`; }

    /* Parents, children, and the nodes of each level from left to right. */
    readTree() {
      this.parent = new Map(this.run.nodes.map((node) => [node.id, node.parent]));
      this.children = new Map(this.run.nodes.map((node) => [node.id, []]));
      for (const [id, parent] of this.parent) this.children.get(parent)?.push(id);
      this.level = new Map();
      this.levels = [];
      const stack = this.run.nodes.length ? [this.run.nodes[0].id] : [];
      while (stack.length) {
        const id = stack.pop();
        const depth = this.parent.get(id) === null ? 0 : this.level.get(this.parent.get(id)) + 1;
        this.level.set(id, depth);
        (this.levels[depth] ??= []).push(id);
        stack.push(...this.children.get(id).toReversed());
      }
    }

    select(id) {
      this.selected = id;
      for (const [other, article] of this.articles) article.hidden = !this.all && other !== id;
      for (const [other, link] of this.links) {
        if (other === id) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
      this.reveal(this.links.get(id));
      this.updateButtons();
      if (this.announce) status.textContent = this.links.get(id).getAttribute("aria-label");
    }

    /* Scroll the tree, not the page, so that a node is in sight. */
    reveal(link) {
      const box = link.getBoundingClientRect();
      const frame = this.canvas.getBoundingClientRect();
      if (box.left < frame.left || box.right > frame.right)
        this.canvas.scrollLeft += (box.left + box.right - frame.left - frame.right) / 2;
      if (box.top < frame.top || box.bottom > frame.bottom)
        this.canvas.scrollTop += (box.top + box.bottom - frame.top - frame.bottom) / 2;
    }

    near(id, way) {
      const level = this.levels[this.level.get(id)];
      const other = level[level.indexOf(id) + way];
      return other === undefined ? null : other;
    }

    onKey(event) {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const up = this.parent.get(this.selected);
      const down = this.children.get(this.selected)[0] ?? null;
      const before = this.near(this.selected, -1);
      const after = this.near(this.selected, 1);
      const steps = this.across
        ? { ArrowLeft: up, ArrowRight: down, ArrowUp: before, ArrowDown: after }
        : { ArrowUp: up, ArrowDown: down, ArrowLeft: before, ArrowRight: after };
      if (!(event.key in steps)) return;
      event.preventDefault();
      const next = steps[event.key];
      if (next === null) return;
      this.select(next);
      this.links.get(next).focus({ preventScroll: true });
      remember(this.key(next));
    }

    goal(way) {
      const ids = this.run.nodes.map((node) => node.id);
      const place = ids.indexOf(this.selected);
      if (way === "prev") return ids[place - 1];
      if (way === "next") return ids[place + 1];
      if (way === "parent") return this.parent.get(this.selected) ?? undefined;
      return this.panel.dataset.best === "" ? undefined : Number(this.panel.dataset.best);
    }

    updateButtons() {
      for (const button of this.walk.querySelectorAll("button[data-go]")) {
        const goal = button.dataset.go === "all" ? 0 : this.goal(button.dataset.go);
        button.disabled = goal === undefined || (button.dataset.go === "best" && goal === this.selected);
      }
    }

    onButton(event) {
      const button = event.target.closest("button[data-go]");
      if (!button) return;
      if (button.dataset.go === "all") {
        this.all = !this.all;
        button.setAttribute("aria-pressed", String(this.all));
        this.select(this.selected);
      } else {
        const goal = this.goal(button.dataset.go);
        if (goal === undefined) return;
        this.select(goal);
        remember(this.key(goal));
        if (this.all) this.articles.get(goal).scrollIntoView();
      }
    }
  }

  function remember(key) {
    try {
      history.replaceState(null, "", `#${key}`);
    } catch {
      /* some viewers do not let a page change its address */
    }
  }

  /* The explorer and node that an address like #r1-n3 means. */
  function target(hash) {
    const match = /^#(r\d+)-n(\d+)$/.exec(hash);
    const explorer = match && explorers.get(match[1]);
    const id = match && Number(match[2]);
    return explorer && explorer.articles.has(id) ? [explorer, id] : null;
  }

  function open(element) {
    for (let at = element; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  }

  function go(hash) {
    const found = target(hash);
    const element = document.getElementById(hash.slice(1));
    if (element) open(element);
    if (!found) {
      element?.scrollIntoView();
      return;
    }
    const [explorer, id] = found;
    explorer.select(id);
    explorer.articles.get(id).scrollIntoView();
  }

  document.addEventListener("click", (event) => {
    if (event.button || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const link = event.target.closest('a[href^="#"]');
    const found = link && target(link.getAttribute("href"));
    if (!found) {
      if (link) open(document.getElementById(link.getAttribute("href").slice(1)));
      return;
    }
    event.preventDefault();
    const [explorer, id] = found;
    const article = explorer.articles.get(id);
    remember(article.id);
    open(article);
    explorer.select(id);
    if (explorer.canvas.contains(link)) {
      if (article.getBoundingClientRect().top > innerHeight * 0.7) explorer.canvas.scrollIntoView();
    } else {
      article.scrollIntoView();
      article.querySelector("[tabindex='-1']").focus({ preventScroll: true });
    }
  });

  for (const run of runs) if (run.nodes.length) explorers.set(run.key, new Explorer(run));
  addEventListener("hashchange", () => go(location.hash));
  if (location.hash.length > 1) go(location.hash);
})();
