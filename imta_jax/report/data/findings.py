"""Findings of the report of a dataset as text: files left out, duplicates, unusual names."""

from imta_jax.report.data.data_record import SPLITS, DataRecord
from imta_jax.report.style import pluralize

MAX_FILES = 5


def finding_warnings(record: DataRecord) -> list[tuple[str, str]]:
    """Findings that may be errors in the data, as (problem, detail)."""
    return [
        *_left_out(record),
        *_rotated(record),
        *_duplicates(record),
        *_similar_classes(record),
        *_misplaced(record),
        *_ignored(record),
    ]


def _left_out(record: DataRecord) -> list[tuple[str, str]]:
    warnings = []
    for split, name in SPLITS.items():
        summary = record.splits[split]
        if not summary.skipped:
            continue
        counts = record.findings.left_out.get(split, {}).items()
        files = record.findings.left_out_files.get(split, [])
        detail = f"{pluralize(summary.examples, 'image')} remain."
        if counts:
            detail += f" Reasons: {', '.join(f'{reason} ({n:,})' for reason, n in counts)}."
        if files:
            more = " ..." if summary.skipped > MAX_FILES else ""
            detail += f" Files: {', '.join(files[:MAX_FILES])}{more}"
        warnings.append((f"{pluralize(summary.skipped, f'{name} file')} left out.", detail))
    return warnings


def _rotated(record: DataRecord) -> list[tuple[str, str]]:
    if record.findings.exif_orientation != "ignore":
        return []
    return [
        (
            f"{pluralize(count, f'{SPLITS[split]} image')} with an EXIF orientation, which is "
            "ignored.",
            "To rotate and mirror such images, set config.data.exif_orientation=apply.",
        )
        for split, count in record.findings.rotated.items()
        if count
    ]


def _duplicates(record: DataRecord) -> list[tuple[str, str]]:
    findings = record.findings
    examples = "; ".join(findings.duplicates)
    detail = f"Equal images, for example: {examples}" if examples else ""
    warnings = [
        (f"{pluralize(n, f'{SPLITS[a]} image')} also among the {SPLITS[b]} images.", detail)
        for a, b, n in findings.across_splits
    ]
    if findings.in_two_classes:
        count = pluralize(findings.in_two_classes, "image")
        warnings.append((f"{count} with equal ones in another class.", detail))
    return warnings


def _similar_classes(record: DataRecord) -> list[tuple[str, str]]:
    return [
        (
            f"Class names that look alike: {', '.join(map(repr, names))}.",
            "They are equal after Unicode normalization and without letter case, invisible"
            " characters and spaces at their ends, also if Cyrillic and Greek letters are replaced"
            " by similar Latin ones.",
        )
        for names in record.findings.similar_classes
    ]


def _misplaced(record: DataRecord) -> list[tuple[str, str]]:
    return [
        (f"{pluralize(count, 'image')} in {folder} not read.", f"To read them, {remedy}.")
        for folder, count, remedy in record.findings.misplaced
    ]


def _ignored(record: DataRecord) -> list[tuple[str, str]]:
    warnings = []
    for folder, counts in record.findings.ignored:
        total = pluralize(sum(counts.values()), "file or folder", "files or folders")
        kinds = ", ".join(f"{kind} ({count:,})" for kind, count in counts.items())
        warnings.append(
            (
                f"{total} in the class folders of {folder} not read: {kinds}.",
                "Only names that end in .jpg, .jpeg or .png are read. Rename JPEGs and PNGs, and"
                " convert other images.",
            )
        )
    return warnings
