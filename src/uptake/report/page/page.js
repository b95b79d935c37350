// Colour a text by what the chosen way gained: data-levels holds one class a way.
document.querySelectorAll(".showcase").forEach((showcase) => {
  showcase.addEventListener("change", (event) => {
    showcase.querySelectorAll("[data-levels]").forEach((token) => {
      token.className = token.dataset.levels.split(" ")[event.target.value];
    });
  });
});
