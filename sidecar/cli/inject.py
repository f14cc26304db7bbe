"""``sidecar inject``: manifests in, manifests with the sidecar out."""

from __future__ import annotations

import difflib
import sys
from dataclasses import replace
from typing import Annotated

import typer

from sidecar.cli.output import fail, warn
from sidecar.kubernetes.injection import InjectionSettings
from sidecar.kubernetes.manifests import BYTES_MAX, Outcome, inject_text
from sidecar.kubernetes.versions import settings_for, version_of

SINCE = "From 1.33 on the sidecar is a native one; from 1.29 on, if no Service has to find its port."


def register(app: typer.Typer) -> None:
    app.command()(inject)


def inject(
    files: Annotated[
        list[str],
        typer.Option(
            "--filename",
            "-f",
            metavar="FILE",
            help="Manifest to read, or - for standard input. Give it several times for several files.",
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print a diff of what would change.")] = False,
    image: Annotated[str | None, typer.Option(help="Image of the sidecar.", show_default=False)] = None,
    config: Annotated[
        str | None, typer.Option(help="Name of the ConfigMap with gateway.yaml.", show_default=False)
    ] = None,
    secret: Annotated[
        str | None, typer.Option(help="Name of the Secret that gateway.yaml refers to.", show_default=False)
    ] = None,
    kubernetes_version: Annotated[str, typer.Option(help=f"Version of the cluster's oldest node. {SINCE}")] = "1.33",
) -> None:
    """Add the gateway to every workload of a manifest that does not opt out.

    The command keeps comments, order, quotes and other documents as they are. Annotations of the pod template
    (quota.openova.io/…) set the sidecar's options.

    Example: [bold]sidecar inject -f deployment.yaml | kubectl apply -f -[/bold]
    """
    usual = settings_of(kubernetes_version, "--kubernetes-version")
    settings = replace(
        usual,
        image=image or usual.image,
        config_map=config or usual.config_map,
        secret=secret or usual.secret,
    )
    outcomes: list[tuple[str, str, Outcome]] = []
    for file in files:
        name, text = ("standard input" if file == "-" else file), _read(file)
        outcomes.append((name, text, inject_text(text, settings, name)))
    refused = [str(each) for _, _, outcome in outcomes for each in outcome.refused]
    if refused:
        fail("\n".join(refused), 1)
    for _, _, outcome in outcomes:
        for warning in outcome.warnings:
            warn(warning)
    for name, text, outcome in outcomes:
        if dry_run:
            sys.stdout.writelines(_diff(name, text, outcome.text))
    if not dry_run:
        sys.stdout.write(_joined([outcome.text for _, _, outcome in outcomes]))


def settings_of(version: str, option: str) -> InjectionSettings:
    """The usual settings for a version of Kubernetes. Ends the process if it is none."""
    try:
        return settings_for(InjectionSettings(), version_of(version))
    except ValueError as error:
        fail(f"{option}: {error}", 2)


def _read(file: str) -> str:
    try:
        if file == "-":
            raw = sys.stdin.buffer.read(BYTES_MAX + 1)
        else:
            with open(file, "rb") as opened:
                raw = opened.read(BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        fail(f"{file}: {getattr(error, 'strerror', None) or error}", 2)
    if len(raw) > BYTES_MAX:
        fail(f"{file}: is larger than {BYTES_MAX} bytes", 1)
    try:
        return raw.decode("utf-8-sig" if raw.startswith(b"\xef\xbb\xbf") else "utf-8")
    except UnicodeDecodeError as error:
        fail(f"{file}: is not UTF-8 at byte {error.start}", 1)


def _joined(texts: list[str]) -> str:
    out = texts[0]
    for text in texts[1:]:
        if out and not out.endswith("\n"):
            out += "\n"
        out += text if text.startswith("---") else f"---\n{text}"
    return out


def _diff(name: str, before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(keepends=True), after.splitlines(keepends=True), name, name)
    return [line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines]
