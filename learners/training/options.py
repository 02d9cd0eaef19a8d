"""The options of ``python -m learners base``: type, help text and environment variable of each, by noun."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# What is learned, and where the snapshot goes.
Examples = Annotated[str, typer.Option(help="Archived examples: a parquet file, a folder of them, an fsspec URL.")]
Out = Annotated[str, typer.Option(help="Where the snapshot goes: the directory or fsspec URL of the snapshots.")]
Spec = Annotated[str, typer.Option(help="Feature spec, a name or a TOML file; default: the archive's.")]
Since = Annotated[str, typer.Option(help="First local day (YYYY-MM-DD) of the events to take.")]
Until = Annotated[str, typer.Option(help="Last such day.")]
NewLog = Annotated[bool, typer.Option("--new-log", help="The stream will write another log than the archived one.")]

# How the rows are split.
ValidationShare = Annotated[float, typer.Option(help="Share of the rows, before the holdout, to stop by.")]
HoldoutShare = Annotated[float, typer.Option(help="Newest share, reported on before it is learned.")]

# Fit and schedule.
Epochs = Annotated[int, typer.Option(help="Passes over the train rows, with early stopping.")]
Patience = Annotated[int, typer.Option(help="Epochs without a lower validation loss until then.")]
RowOrder = Annotated[str, typer.Option(help="time or shuffled.")]
BatchRows = Annotated[int, typer.Option(help="Rows of a step on the train rows.")]
WarmupSteps = Annotated[int, typer.Option(help="Steps until the rates are whole.")]
PlateauSteps = Annotated[int, typer.Option(help="Steps at whole rates before they decay; -1: for ever.")]
HalfLifeSteps = Annotated[float, typer.Option(help="Steps in which they then halve.")]
NegativeRate = Annotated[float, typer.Option(help="Share of the non-clicks to learn, weighing 1 / share.")]

# What the stream believes of delays.
ClickWindow = Annotated[
    float,
    typer.Option(
        help="Age at which a display counts as mature: none younger is judged by.", envvar="MILLSTREAM_CLICK_WINDOW_S"
    ),
]
ConversionHorizon = Annotated[
    float, typer.Option(help="No click converts later.", envvar="MILLSTREAM_CONVERSION_HORIZON_S")
]
ConversionDelayMedian = Annotated[
    float,
    typer.Option(
        help="Believed of conversions that come later than the archive.", envvar="MILLSTREAM_CONVERSION_DELAY_MEDIAN_S"
    ),
]
ConversionDelaySigma = Annotated[
    float, typer.Option(help="Of its logarithm, log-normal.", envvar="MILLSTREAM_CONVERSION_DELAY_SIGMA")
]

# The run: checkpoints, device, report, model.
CheckpointFolder = Annotated[str, typer.Option(help="Directory or URL for checkpoints; the last three stay.")]
CheckpointSteps = Annotated[int, typer.Option(help="Steps from one to the next.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")]
Device = Annotated[str, typer.Option(help="Of the dense part: auto (a GPU if torch sees one), cpu, cuda.")]
Segment = Annotated[list[str] | None, typer.Option(help="Segments of the report: user, hour, columns.")]
Values = Annotated[Path | None, typer.Option(help="JSON: field to its raw values, to name them.")]
ModelFile = Annotated[Path | None, typer.Option(help="TOML of model settings: hidden, heads, admit_after, ...")]
Seed = Annotated[
    int | None, typer.Option(help="Of start weights, shuffling, left-out non-clicks; default: the model's, 0.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
