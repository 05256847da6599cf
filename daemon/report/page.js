"use strict";
document.documentElement.classList.add("js");
for (const player of document.querySelectorAll(".player")) {
  const frames = [...player.querySelectorAll(".strip img")];
  const large = player.querySelector(".stage img");
  const slider = player.querySelector("input");
  const label = player.querySelector("output");
  const show = () => {
    const frame = frames[slider.valueAsNumber];
    large.src = frame.src;
    large.alt = frame.alt;
    label.textContent = frame.dataset.label;
    frames.forEach((other) => other.classList.toggle("now", other === frame));
  };
  slider.addEventListener("input", show);
  frames.forEach((frame, number) =>
    frame.addEventListener("click", () => {
      slider.value = number;
      show();
    }),
  );
  show();
}
