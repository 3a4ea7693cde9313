"""The `cli` command: names, one line of help each, and where the command lives.

Commands are imported when they are asked for, so that `cli --help` waits for no library. A user's mistake
(`TriadError`) prints its message and exits 2, with `--debug` after its traceback; anything else is a bug and keeps it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import click

from stores.console import (
    HintingGroup,
    colour_setting,
    common_options,
    echo_tinted,
    is_debugged,
    with_common_options,
)

COMMANDS = {  # in the order of the work
    "demo": ("fusion.demo:demo_command", "Make a data set, run everything on it, end in a report."),
    "ingest": ("featurize.commands:ingest_command", "Check a dataset and make its store."),
    "import": ("featurize.import_command:import_command", "Take precomputed vectors into a store, by id."),
    "inspect": ("featurize.inspect_command:inspect_command", "Say what will go wrong with raw data, or a store."),
    "verify": ("stores.commands:verify_command", "Read every chunk back against its checksum."),
    "convert": ("stores.commands:convert_command", "Copy a store to one HDF5 file, or to a Zarr folder."),
    "split": ("featurize.commands:split_command", "Deal segments to train, val and test by group."),
    "align": ("featurize.align_command:align_command", "Compare the times of audio and MIDI."),
    "train-encoder": ("fusion.commands:train_encoder_command", "Train an encoder that has no weights yet."),
    "featurize": ("featurize.commands:featurize_command", "Run one encoder over all segments."),
    "fit": ("fusion.commands:fit_command", "Train a fusion head on stored features, with baselines."),
    "ablate": ("fusion.ablate_command:ablate_command", "Try fusions, slots and seeds against each other."),
    "evaluate": ("fusion.evaluate_command:evaluate_command", "Score a run: presence patterns, calibration, shift."),
    "predict": ("fusion.predict_command:predict_command", "Predict new segments with a run's model."),
    "export": ("fusion.export_command:export_command", "Write a run's model as ONNX."),
    "leaks": ("fusion.leak_command:leaks_command", "Look for what leaks from train into val and test."),
    "finetune": ("fusion.finetune_command:finetune_command", "Train a run's encoders and its head together."),
    "report": ("fusion.report_command:report_command", "The report of a run or an ablation again."),
    "config": ("fusion.config_command:config_command", "Write, show or describe the configuration."),
    "completion": ("stores.completion:completion_command", "Teach your shell the names of everything."),
}
RESULT_IS_OUTPUT = {"inspect", "config", "completion"}  # what they print is all they do: --quiet leaves it


class UserMistake(click.ClickException):
    """A mistake that its maker can put right: the message in colour, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        echo_tinted(f"Error: {self.format_message()}", err=True, color=self.show_color)


class LazyGroup(HintingGroup):
    """All commands by name, each imported when it is asked for."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        from stores.terminal import plain_output

        with plain_output():  # around everything that is printed, messages of mistakes included
            return super().main(*arguments, **options)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return with_common_options(command, result_is_output=cmd_name in RESULT_IS_OUTPUT)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        from stores.errors import TriadError, disk_message

        ctx.color = colour_setting(ctx)
        try:
            return super().invoke(ctx)
        except TriadError as error:
            raise _mistake(error, str(error)) from error
        except click.UsageError as error:
            _traceback_if_wanted(error)
            raise
        except OSError as error:  # no space, no permission: the system's refusal is no bug
            message = disk_message(error)
            if message is None:
                raise
            raise _mistake(error, message) from error


def _mistake(error: Exception, message: str) -> UserMistake:
    _traceback_if_wanted(error)
    return UserMistake(message)


def _traceback_if_wanted(error: Exception) -> None:
    if is_debugged():
        from traceback import format_exception

        click.echo("".join(format_exception(error)), err=True, nl=False)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="triad-fusion", prog_name="cli")
@click.pass_context
def cli(context: click.Context) -> None:
    """Which encoders and which fusion work for your music segments with lyrics, audio and MIDI.

    Encode every segment once; then try a fusion idea in seconds.

    \b
    Start with:
      cli demo                          everything once, on data it makes itself
      cli ingest my-songs/              your own folder
      cli featurize --encoder mel_stats
      cli fit --fusion gated
    """
    context.obj = _load_config


cli.params += common_options()


def _load_config(path: Path | None, overrides: tuple[str, ...]) -> Any:
    from fusion.config import load_config

    return load_config(path, overrides)


if __name__ == "__main__":
    cli()
