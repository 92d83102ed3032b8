// arithmatex marks formulas by this class and leaves everything else alone.
window.MathJax = {
  options: { ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex" },
};
