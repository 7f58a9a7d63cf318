// Before the first paint: the theme that was chosen here, if one was.
(() => {
  try {
    const theme = localStorage.getItem("orion-theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage is refused: the system's preference holds.
  }
})();
