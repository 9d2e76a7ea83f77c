"""Spec files and sweeps as grids of specs: every run named by its values, everything checked before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiments.conftest import model_dir, spec_file, world  # noqa: F401 - fixtures
from workbench.errors import InputError
from workbench.launch import read


def test_without_a_sweep_it_is_what_it_was(spec_file: Path) -> None:  # noqa: F811
    asked = read([spec_file])
    assert [spec.name for spec in asked.specs] == ["fake/one"] and asked.values == [{}] and asked.launch is None


def test_a_grid_names_its_runs(spec_file: Path) -> None:  # noqa: F811
    asked = read([spec_file], sweeps=["params.variant=plain,fancy", "seed=0..1"])
    assert [spec.name for spec in asked.specs] == [
        "fake/one/variant-plain/seed-0",
        "fake/one/variant-plain/seed-1",
        "fake/one/variant-fancy/seed-0",
        "fake/one/variant-fancy/seed-1",
    ]
    assert [spec.seed for spec in asked.specs] == [0, 1, 0, 1]
    assert asked.specs[2].params["variant"] == "fancy" and asked.values[2] == {"params.variant": "fancy", "seed": 0}
    assert asked.launch is not None and asked.launch.launcher == "local"


def test_a_models_name_replaces_its_path_alone(spec_file: Path) -> None:  # noqa: F811
    spec_file.write_text(spec_file.read_text().replace("model: ../models/tiny", "model: {path: x, dtype: float32}"))
    asked = read([spec_file], sweeps=["model=organism:a,organism-a"])
    assert [spec.model.path for spec in asked.specs] == ["organism:a", "organism-a"]
    assert all(spec.model.dtype == "float32" for spec in asked.specs)
    first, second = (spec.name for spec in asked.specs)
    assert first != second and first.startswith("fake/one/model-organism-a-"), "names that would look alike get a hash"


def test_long_and_odd_values_have_names(spec_file: Path) -> None:  # noqa: F811
    asked = read([spec_file], sweeps=["params.gate=0.5,1e-3", "data.note='" + "x" * 90 + "','...',''"])
    names = [spec.name for spec in asked.specs]
    assert len(set(names)) == 6 and all(len(name) < 120 for name in names)
    assert names[0].startswith("fake/one/gate-0.5/note-xxx") and "/gate-0.001/" in names[3]


def test_axes_that_end_alike_are_named_in_full(spec_file: Path) -> None:  # noqa: F811
    asked = read([spec_file], sweeps=["params.max_new_tokens=1", "params.inner.draws=2,data.draws=3"])
    assert asked.specs[0].name == "fake/one/max_new_tokens-1/params.inner.draws-2/data.draws-3"


def test_the_file_says_what_the_command_line_may_change(spec_file: Path) -> None:  # noqa: F811
    spec_file.write_text(
        spec_file.read_text()
        + "name: mine\nsweep: {seed: 0..3, params.variant: [plain, fancy]}\nlaunch: {launcher: submitit, workers: 3}\n"
    )
    asked = read([spec_file])
    assert len(asked.specs) == 8 and asked.launch is not None
    assert (asked.launch.launcher, asked.launch.workers) == ("submitit", 3)
    asked = read([spec_file], sweeps=["seed=7"], launch={"launcher": "ray"})
    assert [spec.name for spec in asked.specs] == ["mine/seed-7/variant-plain", "mine/seed-7/variant-fancy"]
    assert asked.launch is not None and (asked.launch.launcher, asked.launch.workers) == ("ray", 3)


def test_several_experiments_in_one_file(spec_file: Path) -> None:  # noqa: F811
    one = spec_file.read_text()
    spec_file.write_text(f"{one}---\n{one}")
    asked = read([spec_file], sweeps=["seed=0..1"])
    assert [spec.name for spec in asked.specs] == [f"fake/one-{i}/seed-{s}" for i in (1, 2) for s in (0, 1)]
    assert [spec.name for spec in read([spec_file]).specs] == ["fake/one-1", "fake/one-2"]


def test_a_file_that_is_no_spec(spec_file: Path) -> None:  # noqa: F811
    spec_file.write_text("- 1\n")
    with pytest.raises(InputError, match="a spec is a mapping with keys name, analysis"):
        read([spec_file], sweeps=["seed=0..1"])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("sweep: 3\n", "sweep is a mapping"),
        ("launch: 3\n", "launch is a mapping"),
        ("launch: {workers: 0}\n", "launch.workers: 0 does not fit"),
        ("launch: {wokers: 2}\n", "Did you mean 'workers'"),
        ("launch: condor\n", "launch.launcher: 'condor' is none of local, submitit, ray"),
        ("sweep: {params.gate: [0.5, wide]}\n", "params.gate"),
        ("swep: {seed: 0..1}\n", "swep"),
    ],
)
def test_what_is_wrong_is_refused_with_its_file(spec_file: Path, more: str, says: str) -> None:  # noqa: F811
    spec_file.write_text(spec_file.read_text() + more)
    with pytest.raises(InputError) as error:
        read([spec_file])
    assert says in str(error.value)


def test_files_that_disagree_are_refused(spec_file: Path) -> None:  # noqa: F811
    other = spec_file.with_name("two.yaml")
    other.write_text(spec_file.read_text() + "launch: {launcher: ray}\n")
    spec_file.write_text(spec_file.read_text() + "launch: local\n")
    with pytest.raises(InputError, match=r"launch.launcher is 'ray', but .*one.yaml says 'local'"):
        read([spec_file, other])
    asked = read([spec_file, other], launch={"launcher": "local"})
    assert asked.launch is not None and asked.launch.launcher == "local"


def test_a_notebook_is_told_where_sweeps_run(spec_file: Path) -> None:  # noqa: F811
    from workbench.experiments import load_spec

    spec_file.write_text(spec_file.read_text() + "sweep: {seed: 0..3}\n")
    with pytest.raises(InputError, match=r"sweep is for the command line; run it with `workbench run .*one.yaml`"):
        load_spec(spec_file)


@pytest.mark.parametrize(
    "options",
    [
        *("{slurm_setup: [rm -rf .]}", "{cluster: local, local_setup: [id]}", "{setup: [id]}", "{teardown: [id]}"),
        *("{slurm_srun_args: [-x]}", "{slurm_additional_parameters: {a: b}}", "{address: 'ray://elsewhere:10001'}"),
        *('{slurm_partition: "gpu\\nrm -rf ."}', '{slurm_comment: "\\r"}', '{resources: {"a\\nb": 1}}'),
    ],
)
def test_a_file_cannot_run_commands_through_an_engine(spec_file: Path, options: str) -> None:  # noqa: F811
    spec_file.write_text(spec_file.read_text() + f"launch: {{launcher: submitit, options: {options}}}\n")
    with pytest.raises(InputError, match=r"launch\.options"):
        read([spec_file])


def test_the_command_line_sets_what_a_file_may_not(spec_file: Path) -> None:  # noqa: F811
    spec_file.write_text(spec_file.read_text() + "launch: {launcher: submitit, options: {slurm_partition: gpu}}\n")
    asked = read([spec_file], launch={"options": {"slurm_setup": ["module load x"]}})
    assert asked.launch is not None
    assert asked.launch.options == {"slurm_partition": "gpu", "slurm_setup": ["module load x"]}
