"""Does a published folder say what its records and files say? Every number that does not follow is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lora_eval.errors import InputError
from lora_eval.fingerprint import fingerprint_folder, sha256_file
from lora_eval.publish.card import measured_rows
from lora_eval.publish.check_card import card_findings, entry_findings, index_findings, text_findings
from lora_eval.publish.check_figures import figure_findings, recomputed_findings
from lora_eval.publish.contents import PUBLICATION
from lora_eval.publish.finding import Finding
from lora_eval.publish.measured import RELATIONS
from lora_eval.publish.records import EVALUATION, Records, read_published
from lora_eval.records import Comparison, Publication
from lora_eval.reports.words import base_arm
from lora_eval.schema import load_json, read_record


def check_folder(folder: Path, recomputed: Comparison | None = None) -> list[Finding]:
    """Return everything in a published folder that does not follow from its records and files.

    `recomputed` is the comparison made again from the published rows (None: rows were not published).

    Raises:
        InputError: the folder was not published by lora-eval.
        RecordError: a record is faulty.
    """
    path = folder / PUBLICATION
    if not path.is_file():
        raise InputError(f"{folder}: no {PUBLICATION}: not published by lora-eval")
    publication = read_record(path, Publication)
    records = read_published(folder)
    found = [
        *_files(folder, publication),
        *_fingerprints(folder, records, publication),
        *_claims(folder, records, publication),
        *figure_findings(records.comparison, records.headers),
        *(recomputed_findings(records.comparison, recomputed) if recomputed else ()),
    ]
    if not measured_rows(records.comparison, base_arm(records.comparison).name, publication.arm):
        return [*found, Finding(f"{PUBLICATION}, arm", publication.arm, "an arm measured against the base")]
    return [
        *found,
        *card_findings(folder, records, publication),
        *text_findings(folder, records, publication),
        *index_findings(folder, records, publication),
        *entry_findings(folder, records, publication),
    ]


def _files(folder: Path, publication: Publication) -> Iterator[Finding]:
    for name, file in publication.files.items():
        path = folder / name
        if not path.is_file():
            yield Finding(name, f"sha256 {file.sha256} in {PUBLICATION}", "no such file")
        elif sha256_file(path) != file.sha256:
            yield Finding(name, f"sha256 {file.sha256} in {PUBLICATION}", sha256_file(path))


def _fingerprints(folder: Path, records: Records, publication: Publication) -> Iterator[Finding]:
    """Every claim about these weights against their files, and the arm's against what the card rests on."""
    found = fingerprint_folder(folder)
    more = [
        path.name
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in _known(publication)
    ]
    beside = f"; beside the published ones: {', '.join(more)}" if more else ""
    claims = {f"{PUBLICATION}, fingerprint": publication.fingerprint}
    if records.lineage is not None:
        claims["lineage.json, last variant"] = records.lineage.variants[-1].fingerprint or found
    if records.verification is not None:
        claims[f"{EVALUATION}/verification.json, candidate"] = (
            records.verification.candidate.fingerprint or "nothing"
        )
    for place, claim in claims.items():
        if claim != found:
            yield Finding(place, claim, f"{found} (the files{beside})")
    arm = next((arm for arm in records.comparison.arms if arm.name == publication.arm), None)
    reference = records.verification.reference.fingerprint if records.verification else None
    wanted = reference if publication.verified_as else found
    if arm is not None and wanted not in (arm.fingerprint, *(run.fingerprint for run in arm.runs)):
        follows = f"{wanted} ({'what it was verified against' if publication.verified_as else 'the files'})"
        yield Finding(f"{EVALUATION}/comparison.json, arm {arm.name}", arm.fingerprint or "nothing", follows)


def _known(publication: Publication) -> set[str]:
    return {*publication.files, ".gitattributes"}


def _claims(folder: Path, records: Records, publication: Publication) -> Iterator[Finding]:
    """What `publication.json` says, against the records that say it too."""
    lineage, verification = records.lineage, records.verification
    claims: list[tuple[str, object, object]] = [
        ("base_model_relation", publication.base_model_relation, RELATIONS[publication.kind])
    ]
    if lineage is not None:
        claims.append(("kind", publication.kind, lineage.variants[-1].kind))
        if lineage.variants[0].revision is not None:
            claims.append(
                ("base_model_revision", publication.base_model_revision, lineage.variants[0].revision)
            )
    if (folder / "adapter_config.json").is_file():
        named = load_json(folder / "adapter_config.json").get("base_model_name_or_path")
        claims += [("kind", publication.kind, "adapter"), ("base_model", publication.base_model, named)]
    for key, claim, follows in claims:
        if claim != follows:
            yield Finding(f"{PUBLICATION}, {key}", str(claim), str(follows))
    gate = records.comparison.gate
    failed = gate is not None and gate.verdict == "FAIL"
    if failed != (publication.override is not None):
        yield Finding(
            f"{PUBLICATION}, override",
            str(publication.override),
            "a reason where, and only where, the gate failed",
        )
    if publication.kind != "adapter" and (verification is None or not verification.passed):
        yield Finding(
            f"{EVALUATION}/verification.json", "nothing that passed", "that this model was not verified"
        )
