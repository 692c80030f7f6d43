"""Dedicated experts: one for each channel set, each a run that training takes."""

from tiny import TINY_WORDS

from training.experts import experts, main
from training.train import parse

ARGS = ["quickstart", "--data.path", "some data", *TINY_WORDS]


def test_every_channel_set_has_an_expert_that_sees_nothing_else():
    jobs = {folder: parse([*ARGS, *arguments]) for folder, arguments in experts(parse(ARGS)).items()}
    assert [job.model.plain_channels for job in jobs.values()] == ["RGB", "RG", "RB", "GB", "R", "G", "B"]
    for folder, job in jobs.items():
        chosen = job.model.plain_channels
        assert folder == str(job.run_dir) == f"runs/quickstart-expert-{chosen}"
        assert (job.model.stem, job.schedule.channel_sets) == ("plain", chosen)
        assert job.name == f"quickstart-expert-{chosen}"


def test_run_directory_and_vocabulary_are_those_of_the_job():
    job = parse([*ARGS, "--run-dir", "runs/my experts", "--model.vocabulary", "450+530"])
    assert [*experts(job)] == ["runs/my experts-450+530", "runs/my experts-450", "runs/my experts-530"]
    for arguments in experts(job).values():
        parse([*ARGS, "--model.vocabulary", "450+530", *arguments])


def test_a_line_for_each_that_a_shell_can_take_apart(capsys):
    job = parse([*ARGS, "--run-dir", "runs/my experts"])
    main(job)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {folder: arguments for folder, *arguments in lines} == experts(job)
