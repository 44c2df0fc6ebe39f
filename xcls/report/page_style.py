"""The looks of the page: on a desk, on a phone, on paper. Colours only repeat what signs and words say."""

from __future__ import annotations

from string import Template

INK, SOFT, PAPER, BAND, LINK = "#1b1f24", "#57606a", "#ffffff", "#f4f5f7", "#0b4f9e"
GOOD, BAD, OPEN = "#00603c", "#a3001b", "#6b4e00"  # passes, fails, cannot tell

SCREEN = """
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: $ink;
  background: $paper; margin: 0 auto; max-width: 76rem; padding: 1rem 1.25rem 4rem; overflow-wrap: break-word; }
h1 { font-size: 1.15rem; line-height: 1.3; margin: .25rem 0 .5rem; color: $soft; font-weight: 600; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 .75rem; border-top: 2px solid $ink; padding-top: .75rem; }
h3 { font-size: 1.08rem; margin: 2rem 0 .4rem; }
p { margin: .5rem 0; max-width: 50rem; }
a { color: $link; }
nav { font-size: .9rem; margin: .5rem 0 1rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; padding: 0; margin: 0; }
.study { background: #fff4d6; border-left: 4px solid #b37a00; padding: .5rem .8rem; max-width: none; }
.note, figcaption { color: $soft; font-size: .88rem; max-width: 50rem; }

.answer { background: $band; border-left: 5px solid $soft; padding: .8rem 1.1rem; margin: 1rem 0; }
.answer.PASS { border-color: $good; }
.answer.FAIL { border-color: $bad; }
.answer h2 { border: 0; margin: 0; padding: 0; font-size: .95rem; color: $soft !important; }
.answer p, .answer ul { max-width: 62rem; }
.answer ul { list-style: none; margin: .7rem 0 .2rem; padding: 0; }
.answer li { display: grid; grid-template-columns: 1.3em 1fr; margin: .35rem 0; }
.answer li > :first-child, .answer .next { font-weight: 700; }
.answer p.headline { font-size: 1.6rem; line-height: 1.3; font-weight: 650; margin: .6rem 0 .4rem; max-width: 56rem; }
.PASS > :first-child, b.PASS { color: $good; }
.FAIL > :first-child, b.FAIL { color: $bad; }
.MISSING > :first-child, b.MISSING { color: $open; }

.scroll { overflow-x: auto; margin: .5rem 0; position: relative; max-width: 100%; }
table { border-collapse: separate; border-spacing: 0; font-size: .86rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: $soft; font-size: .86rem; padding: .2rem 0 .4rem; }
caption span { display: block; position: sticky; left: 0; max-width: min(50rem, calc(100vw - 2.5rem)); }
th, td { text-align: left; padding: .34rem .6rem; border-bottom: 1px solid #d0d5db; vertical-align: top;
  white-space: nowrap; unicode-bidi: isolate; }
thead th { border-bottom: 2px solid $ink; vertical-align: bottom; white-space: normal; min-width: 5rem; }
tbody th { position: sticky; left: 0; background: $paper; max-width: 22rem; white-space: normal; font-weight: 600; }
tbody tr:hover > * { background: $band; }
.num { text-align: right; }
.long { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
td small { display: block; color: $soft; font-size: .92em; }
th button { all: unset; cursor: pointer; }
th button::after { content: " ↕"; color: $soft; font-weight: 400; }
th[aria-sort=ascending] button::after { content: " ↑"; color: inherit; }
th[aria-sort=descending] button::after { content: " ↓"; color: inherit; }
.scroll:focus-visible, th button:focus-visible, a:focus-visible, summary:focus-visible { outline: 3px solid $link;
  outline-offset: 1px; }

figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 33rem), 1fr)); gap: .5rem 1.5rem;
  align-items: start; }
details { margin: .4rem 0; }
summary { cursor: pointer; padding: .15rem 0; }
pre { font-size: .84rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; background: $band;
  padding: .6rem; }
"""
PHONE = """
@media (max-width: 40rem) {
  body { padding: .75rem .8rem 3rem; }
  .answer { padding: .7rem .8rem; }
  .answer p.headline { font-size: 1.3rem; }
  tbody th { max-width: 9.5rem; }
  th, td { padding: .3rem .45rem; }
}
"""
PRINT = """
@page { size: A4 landscape; margin: 12mm; }
@media print {
  body { max-width: none; font-size: 10.5px; padding: 0; }
  nav, th button::after { display: none; }
  .scroll { overflow: visible; }
  h2, h3, summary, caption, thead { break-after: avoid; }
  figure, tr, .answer { break-inside: avoid; }
  th, td, thead th, tbody th { position: static; white-space: normal; padding: .12rem .3rem; min-width: 0; max-width: none; }
  table { font-size: 9.5px; }
  table { max-width: 100%; overflow-wrap: break-word; }
  td.num { white-space: nowrap; }
  .few, caption { break-inside: avoid; }
  tbody tr:first-child { break-before: avoid; }
  .wide table { font-size: 6.5px; width: 100%; }
  .wider table { font-size: 5px; }
  .wide th, .wide td { padding: .1rem .18rem; }
  thead th, .wide tbody td:not(.num), .wide tbody th { overflow-wrap: anywhere; }
  caption span { position: static; max-width: none; }
  .long { min-width: 8rem; }
  .answer p.headline { font-size: 1.5em; }
  .plots { grid-template-columns: 1fr 1fr; }
  img { max-height: 95mm; width: auto; }
}
"""
STYLE = Template(SCREEN + PHONE + PRINT).substitute(
    ink=INK, soft=SOFT, paper=PAPER, band=BAND, link=LINK, good=GOOD, bad=BAD, open=OPEN
)
