"""The page of methods is what its command makes of the files, docstrings, tests and measurements that there are."""

import runpy

from places import REPOSITORY

from ngrpo.cli.identity import register_resolvers


def test_the_committed_page_is_what_the_command_makes():
    register_resolvers()
    made = runpy.run_path(str(REPOSITORY / "docs" / "methods.py"))["page"]()
    committed = (REPOSITORY / "docs" / "methods.md").read_text("utf-8")
    assert made == committed, "python docs/methods.py makes it anew"
    for path in REPOSITORY.glob("conf/exploration/*.yaml"):
        assert f"\n### {path.stem}\n" in made
