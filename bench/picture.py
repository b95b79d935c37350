"""Draw the main job's gain against the number of neighbours, from its figures.

python bench/picture.py --out docs/images/neighbours.svg
"""

import argparse
import json
from pathlib import Path

from uptake.report.page.chart import Mark, Series, counts, draw, linear

# Light colours of the report's page, which a picture by itself cannot ask for.
STYLE = (
    "text{font:12.5px system-ui,sans-serif;fill:#5a626c}.end{text-anchor:end}.middle{text-anchor:middle}"
    ".name{font-weight:600;fill:var(--c)}.grid{stroke:#dfe0da}.zero{stroke:#b9bcb6}"
    ".line{fill:none;stroke:var(--c);stroke-width:2}.band{fill:var(--c);opacity:.13}"
    ".marker{fill:var(--c);stroke:#fdfdfb}.unseen{fill:transparent}"
    ".s1{--c:#b0568c}.s2{--c:#0069a6}.s3{--c:#c14d00}.s4{--c:#00795a}.s5{--c:#2f8fc4}.s6{--c:#9a6b00}.s7{--c:#6a4fb3}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--figures", type=Path, default=Path("bench/main_job.json"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/neighbours.svg"))
    given = parser.parse_args()
    domains = json.loads(given.figures.read_text())["first_round"]
    series = [
        Series(
            name.replace("_", " "),
            colour,
            (
                Mark(0, 0.0, (0.0, 0.0)),
                *(
                    Mark(at["k"], 100 * at["gain"], [100 * end for end in at["gain_ci"]])
                    for at in by_k["ttt-nn"]
                ),
            ),
        )
        for colour, (name, by_k) in enumerate(domains.items(), start=2)
    ]
    marks = [mark for one in series for mark in one.marks]
    svg = draw(
        "lines",
        series,
        counts("neighbours", {int(mark.x) for mark in marks}),
        linear("bits saved, %", [end for mark in marks for end in mark.ends or ()]),
        summary="Share of the base's bits that TTT-NN saves against the number of neighbours, by domain",
    )
    head, _, rest = svg.partition(">")
    given.out.write_text(f'{head} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>{rest}\n')


if __name__ == "__main__":
    main()
