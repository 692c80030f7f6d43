"""How a page looks: on screens light and dark, wide and narrow, and in print."""

STYLE = """\
:root {
  color-scheme: light;
  --ink: #1b1d20; --quiet: #5c6166; --line: #d6d9dc; --page: #ffffff; --raised: #f5f6f7; --link: #005a8f;
  --blue: #0072b2; --sky: #56b4e9; --right: #005a8f; --wrong: #a84300;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    color-scheme: dark;
    --ink: #e4e6e8; --quiet: #a4a9ae; --line: #3b3f44; --page: #15171a; --raised: #1e2124; --link: #7cc4f5;
    --blue: #3f97d8; --sky: #8fd0f7; --right: #7cc4f5; --wrong: #ff9a5c;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 70rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 3rem 0 .8rem;
  padding-top: .6rem; border-top: 1px solid var(--line); }
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
nav ol { columns: 16rem; column-gap: 2rem; margin: 1rem 0 0; padding-left: 1.6rem; font-size: .92rem; }
nav li { padding: .15rem 0; break-inside: avoid; }
.note, figcaption, caption { font-size: .85rem; color: var(--quiet); text-align: left; }
.note { margin: .5rem 0 1.5rem; max-width: 46rem; }
figcaption, caption { padding-bottom: .4rem; }
.box { overflow-x: auto; margin: 1rem 0 0; /* a shadow at the edge beyond which a table goes on */
  background: linear-gradient(to left, var(--page) 40%, transparent) right / 2.5rem 100% no-repeat local,
    linear-gradient(to left, var(--line), transparent) right / 1rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .85rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: middle; }
td { white-space: nowrap; } td.long { white-space: normal; min-width: 15rem; }
.number { text-align: right; } .number small { display: block; }
small { font-size: .86em; color: var(--quiet); white-space: nowrap; }
.shade small { color: inherit; }
thead th { border-bottom: 2px solid var(--quiet); vertical-align: bottom; }
tbody th { font-weight: 500; }
th:first-child { position: sticky; left: 0; background: var(--page); max-width: min(18rem, 40vw); }
.shade { text-align: center; border-bottom-color: transparent;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
td.right, td.wrong { white-space: normal; min-width: 5.5rem; }
.right { color: var(--right); } .wrong { color: var(--wrong); font-weight: 600; }
th img { display: block; border-radius: 3px; margin-bottom: .2rem; }
caption span { display: block; position: sticky; left: 0; max-width: calc(100vw - 2rem); }
th.long { min-width: min(14rem, 40vw); }
figure { margin: 1.5rem 0; }
.key { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; list-style: none;
  margin: 0 0 .5rem; padding: 0; font-size: .85rem; }
.panels { display: grid; gap: .8rem; align-items: end; max-width: 100%;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, calc(1.25 * var(--width))), 1fr)); }
.panels > div { min-width: 0; max-width: calc(1.75 * var(--width)); }
.panels svg { display: block; width: 100%; height: auto; }
details { margin: .5rem 0; } summary { cursor: pointer; }
pre { font-size: .8rem; overflow-x: auto; background: var(--raised); padding: .8rem; border-radius: 4px; }
@media print {
  @page { size: A4; margin: 14mm 12mm; }
  html { font-size: 10pt; } body { padding: 0; max-width: none; }
  h2, section > p:not(.note), caption, figcaption, .key { break-after: avoid; }
  p { orphans: 3; widows: 3; }
  tr, .short, .panels > div { break-inside: avoid; }
  thead { display: table-header-group; }
  .box { overflow: visible; background: none; }
  table { font-size: 7pt; } th, td { padding: .15rem .3rem; }
  td { white-space: normal; } td.long { min-width: 9rem; }
  th:first-child { position: static; min-width: 0; }
  details { display: none; }
}
"""
