// Two repairs for narrow screens, after MathJax has set the page. Inline math wider than the line it
// stands in is marked, so that it scrolls there instead of widening the page; and a displayed
// equation that has to scroll can be reached and moved with the keyboard.
(function () {
  function mark() {
    for (const math of document.querySelectorAll(".bd-article mjx-container:not([display])")) {
      math.classList.remove("wide-math");
      const block = math.closest("p, li, td, th, dd, dt, figcaption, div");
      if (block && math.getBoundingClientRect().width > block.clientWidth) {
        math.classList.add("wide-math");
      }
    }
    for (const box of document.querySelectorAll(".equation-body")) {
      if (box.scrollWidth > box.clientWidth) {
        box.tabIndex = 0;
      } else {
        box.removeAttribute("tabindex");
      }
    }
  }
  function start() {
    const ready = window.MathJax && window.MathJax.startup && window.MathJax.startup.promise;
    if (ready) {
      ready.then(mark);
    }
    window.addEventListener("resize", mark);
  }
  window.addEventListener("load", start);
})();
