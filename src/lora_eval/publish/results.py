"""A comparison as a dataset repository: each arm's rows in Parquet, for others to analyse again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_eval.errors import InputError
from lora_eval.publish.content import Content
from lora_eval.publish.contents import text_problems
from lora_eval.publish.hub import check_repo_id
from lora_eval.publish.licences import check_known_licence
from lora_eval.publish.records import arm_names, portable, run_names
from lora_eval.publish.secrets import secrets_in_rows
from lora_eval.publish.stage import Prepared
from lora_eval.records import Comparison
from lora_eval.runstore import HEADER, ROWS, flat_rows, read_run
from lora_eval.schema import dump_record, dump_yaml, read_record


def gather_results(comparison: Path, repo_id: str, licence: str | None = None) -> Prepared:
    """Return the dataset repository of a comparison: rows, headers, the comparison itself and a card.

    `load_dataset(REPO, ARM)` gives an arm's rows: task, item, prompt, answer, log-likelihoods, and a column
    for each metric.

    Raises:
        InputError: an arm's rows are not beside the comparison, or hold what must not be published.
    """
    check_repo_id(repo_id)
    record = read_record(comparison, Comparison)
    names = run_names(record)
    folders = {name: comparison.parent / "runs" / name for name in names}
    missing = [name for name, folder in folders.items() if not (folder / ROWS).is_file()]
    if missing:
        raise InputError(f"{comparison.parent}/runs: no rows of {', '.join(missing)}; run `compare` again")
    paths = arm_names(record)
    contents = {"comparison.json": Content(dump_record(portable(record, paths)).encode())}
    problems = check_known_licence("--license", licence)
    for name, folder in folders.items():
        loaded = read_run(folder)
        contents[f"runs/{name}/{HEADER}"] = Content(dump_record(portable(loaded.run, paths)).encode())
        contents[f"runs/{name}/{ROWS}"] = Content(flat_rows(loaded.rows))
        problems += [f"{folder / ROWS}: {problem}" for problem in secrets_in_rows(loaded.rows)]
    contents["README.md"] = Content(_card(record, names, repo_id, licence).encode())
    problems += text_problems(contents)
    if problems:
        raise InputError("\n".join(problems))
    return Prepared(repo_id, contents, "dataset")


def _card(comparison: Comparison, names: list[str], repo_id: str, licence: str | None) -> str:
    from lora_eval.reports.markdown import table_cell
    from lora_eval.reports.page import render_template
    from lora_eval.reports.words import headline

    matter: Mapping[str, object] = {
        **({"license": licence} if licence else {}),
        "tags": ["lora-eval", "evaluation"],
        "configs": [{"config_name": name, "data_files": f"runs/{name}/{ROWS}"} for name in names],
    }
    body = render_template(
        "dataset.md.jinja",
        comparison=comparison,
        names=names,
        repo_id=repo_id,
        headline=headline(comparison),
        cell=table_cell,
    )
    return f"---\n{dump_yaml(dict(matter))}---\n\n{body}"
