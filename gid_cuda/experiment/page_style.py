"""The look of an experiment's page: one column, tables that scroll sideways where a screen is narrow, no scripts."""

STYLE = """
:root { --ink: #1c2126; --soft: #5c6670; --rule: #d5dade; --ground: #fff; --tint: #f5f7f8; --accent: #00598a;
        --warn: #8a3b00; --warn-tint: #fdf3ea; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2rem clamp(.9rem, 4vw, 2.5rem) 4rem; max-width: 76rem; color: var(--ink);
       background: var(--ground); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { max-width: 46rem; margin: .4rem 0; }
.soft, figcaption { color: var(--soft); font-size: .875rem; }
.status { margin: .6rem 0 0; font-size: .95rem; }
.problems { border-left: 4px solid var(--warn); background: var(--warn-tint); padding: .5rem 1rem; margin: 1rem 0; }
.problems ul { margin: .2rem 0; padding-left: 1.2rem; }
.problems li { overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
.numbers { width: 100%; min-width: 57rem; }
th, td { padding: .28rem .55rem; text-align: right; white-space: nowrap; vertical-align: baseline; }
th { font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
.numbers th:first-child { position: sticky; left: 0; background: var(--ground); max-width: 16rem; white-space: normal;
                          min-width: 7.5rem; }
thead th { border-bottom: 2px solid var(--ink); }
.numbers tbody { border-bottom: 1px solid var(--rule); }
.numbers tbody tr:first-child > * { padding-top: .5rem; }
.numbers tbody tr:last-child > * { padding-bottom: .5rem; }
.numbers small { color: var(--soft); font-size: .78em; }
tr.sub > * { color: var(--soft); font-size: .82rem; font-weight: 400; padding-top: 0; padding-bottom: .1rem; }
tr.sub > th { padding-left: .9rem !important; }
tr.gain > td { color: var(--accent); }
td.best { font-weight: 700; }
figure { margin: 1rem 0 1.8rem; }
figure .wide { margin: 0; }
figure img { display: block; width: 100%; max-width: max-content; min-width: 36rem; height: auto;
             border: 1px solid var(--rule); }
figcaption { margin: 0 0 .4rem; }
figcaption b { color: var(--ink); }
details { margin: .3rem 0; }
summary { cursor: pointer; padding: .15rem 0; }
pre { background: var(--tint); padding: .7rem .9rem; overflow-x: auto; font-size: .8rem; line-height: 1.45; }
code { font-size: .86em; background: var(--tint); padding: .1em .3em; overflow-wrap: anywhere; }
.list td, .list th { text-align: left; white-space: normal; border-bottom: 1px solid var(--rule);
                     vertical-align: top; overflow-wrap: anywhere; }
.list th { white-space: nowrap; }
.list { min-width: min(100%, 30rem); }
.runs td, .runs th { border-bottom: 1px solid var(--rule); }
@media print { body { max-width: none; padding: 0; } .wide { overflow: visible; } details { display: none; } }
"""
