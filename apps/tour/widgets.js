"use strict";
addEventListener("DOMContentLoaded", () => {
  for (const wipe of document.querySelectorAll(".wipe")) {
    const view = wipe.querySelector(".view"), slider = wipe.querySelector("input");
    const cut = (percent) => {
      slider.value = percent;
      view.style.setProperty("--cut", `${slider.value}%`);
    };
    slider.addEventListener("input", () => cut(slider.value));
    view.addEventListener("pointermove", (event) => {
      if (event.pointerType === "touch" && !event.buttons) return;
      const box = view.getBoundingClientRect();
      cut(100 * (event.clientX - box.left) / box.width);
    });
  }
  for (const film of document.querySelectorAll(".film")) {
    const captions = JSON.parse(film.dataset.captions);
    const slider = film.querySelector("input"), button = film.querySelector("button");
    const show = (at) => {
      slider.value = at;
      film.style.setProperty("--at", at);
      film.querySelector("output").value = captions[at];
    };
    slider.addEventListener("input", () => show(Number(slider.value)));
    let timer = 0;
    button?.addEventListener("click", () => {
      timer = timer ? clearInterval(timer) || 0 : setInterval(() => show((Number(slider.value) + 1) % captions.length), 140);
      button.textContent = timer ? "\u275a\u275a" : "\u25b6";
      button.ariaLabel = timer ? "stop" : "play";
    });
  }
});
