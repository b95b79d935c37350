// Colour a text by what the chosen method gained: data-levels holds one class a method.
document.querySelectorAll(".showcase").forEach((showcase) => {
  showcase.addEventListener("change", (event) => {
    showcase.querySelectorAll("[data-levels]").forEach((token) => {
      token.className = token.dataset.levels.split(" ")[event.target.value];
    });
  });
});
