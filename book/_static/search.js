// What a result shows of its page: the text of the article, without the theme's own words around it.
Search.htmlToText = (html, anchor) => {
  const page = new DOMParser().parseFromString(html, "text/html");
  const article = page.querySelector("article.bd-article") || page.body;
  const chrome = ".headerlink, script, style, .check, .check-back, .toctree-wrapper, .chapter-facts, "
    + ".formulas, .used-in, .math, .equation-number, .drawing, pre";
  article.querySelectorAll(chrome).forEach((element) => element.remove());
  const part = anchor ? article.querySelector(anchor) : null;
  return (part || article).textContent.replace(/\s+/g, " ");
};
