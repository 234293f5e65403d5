// Unpacks the plotting library that the page carries and draws every figure in its place.
(async () => {
  const packed = atob(document.getElementById("plotly").textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const library = document.createElement("script");
  library.textContent = await new Response(stream).text();
  document.head.append(library);
  const options = { responsive: true, displayModeBar: false, scrollZoom: false };
  for (const place of document.querySelectorAll(".chart")) {
    const figure = JSON.parse(place.querySelector("script").textContent);
    place.replaceChildren();
    await Plotly.newPlot(place, figure.data, figure.layout, options);
  }
  document.documentElement.dataset.drawn = "yes";
})();
