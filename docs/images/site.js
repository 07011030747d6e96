// Names and a stop of the keyboard for parts that the theme makes in the browser.
const name = () => {
  document.querySelectorAll("nav.md-code__nav:not([aria-label])").forEach((each) => {
    const number = document.querySelectorAll("nav.md-code__nav[aria-label]").length + 1;
    each.setAttribute("aria-label", `Code block ${number}`);
  });
  for (const each of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) each.tabIndex = 0;
  for (const each of document.querySelectorAll(".md-typeset pre > code:not([tabindex])")) each.tabIndex = 0;
};
new MutationObserver(name).observe(document.querySelector(".md-content") ?? document.body, { childList: true, subtree: true });
name();
