"use strict";
// One sound at a time, and keys to walk from one to the next.
(() => {
  const players = [...document.querySelectorAll("audio")];
  const others = (one) => players.filter((player) => player !== one);
  for (const player of players) {
    player.addEventListener("play", () => {
      for (const other of others(player)) {
        if (!other.paused) other.pause();
      }
    });
  }
  let current = -1;
  for (const [i, player] of players.entries()) {
    player.addEventListener("play", () => { current = i; });
    player.addEventListener("focus", () => { current = i; });
  }
  const start = (i) => {
    const player = players[i];
    if (!player) return;
    player.currentTime = 0;
    player.focus();
    player.closest("td").scrollIntoView({ block: "nearest", inline: "nearest" });
    player.play().catch(() => {});
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") others(null).forEach((p) => p.pause());
    if (event.key === "n") start(Math.min(current + 1, players.length - 1));
    if (event.key === "b") start(Math.max(current - 1, 0));
    if (event.key === "r") start(Math.max(current, 0));
  });
})();
