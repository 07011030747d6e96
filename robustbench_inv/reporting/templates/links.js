// A large file lies compressed in the page and is unpacked as it is saved.
for (const link of document.querySelectorAll("a[data-unpacked]")) {
  if (!("DecompressionStream" in window)) continue;
  const packed = link.href;
  link.addEventListener("click", async (event) => {
    if (link.href !== packed) return;
    event.preventDefault();
    const bytes = Uint8Array.from(atob(packed.slice(packed.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    link.href = URL.createObjectURL(await new Response(stream).blob());
    link.download = link.dataset.unpacked;
    link.click();
  });
}
// A button beside a command copies it.
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
    } catch {
      const field = document.createElement("textarea");
      field.value = button.dataset.copy;
      document.body.append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
