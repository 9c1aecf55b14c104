"""The built-in plugin: every component and command that comes with speedkit."""

from __future__ import annotations

from speedkit.core.hookspecs import Register, RegisterCommand, hookimpl

_HERE = "speedkit.plugins"


@hookimpl
def register_scaffolds(register: Register) -> None:
    """Offer the five scaffolds of the paper."""
    register("flat", f"{_HERE}.scaffolds.flat:FlatScaffold")
    register("tree", f"{_HERE}.scaffolds.tree:TreeScaffold")
    register("forest", f"{_HERE}.scaffolds.forest:ForestScaffold")
    register("aide", f"{_HERE}.scaffolds.aide:AideScaffold")
    register("multi_aide", f"{_HERE}.scaffolds.multi_aide:MultiAideScaffold")


@hookimpl
def register_coders(register: Register) -> None:
    """Offer the coders that ask a language model, and the controls that need none."""
    register("llm", f"{_HERE}.coders.llm:LLMCoder")
    register("aider", f"{_HERE}.coders.aider:AiderCoder")
    register("noop", f"{_HERE}.coders.noop:NoopCoder")
    register("oracle", f"{_HERE}.coders.oracle:OracleCoder")
    register("tuner", f"{_HERE}.coders.tuner:TunerCoder")


@hookimpl
def register_executors(register: Register) -> None:
    """Offer the local executor, and those that hand jobs to an engine."""
    register("torchrun", f"{_HERE}.executors.torchrun:TorchrunExecutor")
    register("slurm", f"{_HERE}.executors.slurm:SlurmExecutor")
    register("ray", f"{_HERE}.executors.ray:RayExecutor")


@hookimpl
def register_summarizers(register: Register) -> None:
    """Offer the summarizer that asks a language model, and the one that needs none."""
    register("llm", f"{_HERE}.summarizers.llm:LLMSummarizer")
    register("rules", f"{_HERE}.summarizers.rules:RulesSummarizer")


@hookimpl
def register_judges(register: Register) -> None:
    """Offer the judge that asks a language model, and the one that needs none."""
    register("llm", f"{_HERE}.judges.llm:LLMJudge")
    register("diff", f"{_HERE}.judges.diff:DiffJudge")


@hookimpl
def register_knowledge(register: Register) -> None:
    """Offer hints, files, and guides to what some tasks need."""
    register("hints", f"{_HERE}.knowledge.hints:HintsKnowledge")
    register("files", f"{_HERE}.knowledge.files:FilesKnowledge")
    register("flexattention", f"{_HERE}.knowledge.flexattention:FlexAttentionKnowledge")
    register("muon", f"{_HERE}.knowledge.muon:MuonKnowledge")


@hookimpl
def register_guards(register: Register) -> None:
    """Offer what every node must pass before it may count."""
    register("constraints", f"{_HERE}.guards.constraints:ConstraintsGuard")
    register("log", f"{_HERE}.guards.log:LogGuard")
    register("clock", f"{_HERE}.guards.clock:ClockGuard")
    register("data", f"{_HERE}.guards.data:DataGuard")
    register("evaluation", f"{_HERE}.guards.evaluation:EvaluationGuard")


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    """Offer the commands of the ``speedkit`` program."""
    for name, help_text in _COMMANDS.items():
        register(name, f"speedkit.cli.{name}:command", help=help_text)


_COMMANDS = {
    "run": "Search a task: scaffold, coder, executor, history, FSR.",
    "tasks": "List the tasks of a family.",
    "records": "List, show, compare and import the records of a family.",
    "data": "Fetch, make up and check token shards.",
    "guards": "List what a node must pass before it may count.",
    "plugins": "List components and their options; make and install plugins.",
    "cancel": "End a run and its jobs from outside.",
    "show": "Show a run or one of its nodes.",
    "log": "Print the search tree of a run.",
    "diff": "Compare the code of two nodes.",
    "results": "Show runs as a table, and import results of others.",
    "compare": "Compare cells of runs: IQM and others with intervals, differences.",
    "figures": "Draw results as PNG and SVG files.",
    "report": "Write an HTML report on runs: tree, nodes, figures, tables, cost.",
    "sweep": "Run the grid of runs that a TOML file describes.",
    "ablate": "Run tasks with every combination of components, options, hints and others.",
    "cumulative": "Run a chain of tasks, each from the best script of the one before.",
    "verify": "Measure again what a search claims, and give a verdict.",
    "judge": "Score how much of the human change a node reproduced.",
    "calibrate": "Measure the start and target record of a task on this machine.",
    "metrics": "Read training logs strictly.",
    "aider": "Install aider in an environment of its own, and say which one is used.",
    "doctor": "Say what this machine can run, and how to get what is missing.",
    "hints": "Let a model write the hints of a task, and show them.",
    "prompts": "List and show prompt templates, or the first prompt of a run.",
    "config": "Show the resolved configuration.",
}
