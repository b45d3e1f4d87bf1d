"use strict";
// The words of each <title> beside the pointer, at once and legible; without this, browsers show them by themselves.
(() => {
  const tip = document.getElementById("tip");
  let title = null, holder = null;
  const leave = () => {
    if (title) holder.prepend(title);
    title = holder = null;
    tip.hidden = true;
  };
  document.addEventListener("pointerover", (event) => {
    leave();
    const element = event.target instanceof SVGElement && event.target.ownerSVGElement ? event.target : null;
    const own = element && Array.from(element.children).find((child) => child.tagName === "title");
    if (!own) return;
    holder = element;
    title = own;
    tip.textContent = own.textContent;
    own.remove();
    tip.hidden = false;
  });
  document.addEventListener("pointermove", (event) => {
    const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${event.clientY + 18}px`;
  });
  document.documentElement.addEventListener("pointerleave", leave);
})();
