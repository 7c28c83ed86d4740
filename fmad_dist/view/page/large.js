// One image large, with its neighbours a key away.
export class LargeView {
  constructor(dialog, page, closed) {
    this.dialog = dialog;
    this.page = page;
    const part = (name) => dialog.querySelector(`#${name}`);
    this.parts = Object.fromEntries(
      ["large-name", "large-image", "large-heat", "large-says", "previous", "next", "close"].map((name) => [name, part(name)]),
    );
    this.pair = dialog.querySelector(".pair");
    this.parts.previous.addEventListener("click", () => this.step(-1));
    this.parts.next.addEventListener("click", () => this.step(1));
    this.parts.close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => closed(this.place));
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
    dialog.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || event.target.type === "range") return;
      event.preventDefault();
      this.step(step);
    });
    const image = this.parts["large-image"];
    image.addEventListener("load", () => {
      this.pair.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
      this.dialog.dataset.loaded = image.src;
    });
  }

  open(rows, place) {
    this.rows = rows;
    this.show(place);
    this.dialog.showModal();
  }

  step(by) {
    const place = this.place + by;
    if (place >= 0 && place < this.rows.length) this.show(place);
  }

  show(place) {
    this.place = place;
    const row = this.rows[place];
    const { data } = this.page;
    this.parts["large-name"].textContent = data.names[row];
    this.parts["large-says"].textContent = `${place + 1} of ${this.rows.length} · ${this.page.says(row)}`;
    this.set("large-image", data.pictures[row] ? this.page.url(row, "image", false) : null);
    this.set("large-heat", data.heats[row] ? this.page.url(row, "heat", false) : null);
    this.parts["large-image"].alt = data.names[row];
    this.parts.previous.disabled = place === 0;
    this.parts.next.disabled = place === this.rows.length - 1;
    if (document.activeElement?.disabled) this.parts.close.focus();
  }

  set(name, url) {
    const image = this.parts[name];
    image.hidden = url === null;
    image.removeAttribute("src"); // or the one before is seen until this one is there
    if (url !== null) image.src = url;
  }
}
