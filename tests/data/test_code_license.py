"""The licence filter: SPDX expressions mean what SPDX says; a file's own header counts before its package."""

from __future__ import annotations

import pytest

pytest.importorskip("datatrove")

from pipeline_samples import filtered

from pomona.data.pipeline.code_license import KeepLicensed, is_allowed, license_of_text
from pomona.data.pipeline.python_text import docstrings, licenses_of_packages, package_description
from pomona.data.pipeline.recipe import CodeLicense

ALLOWED = {"MIT", "Apache-2.0"}


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("mit", True),
        ("GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("MIT AND Apache-2.0", True),
        ("MIT OR GPL-2.0 AND GPL-3.0", True),  # AND binds tighter
        ("(MIT OR GPL-2.0) AND GPL-3.0", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("", False),
        ("MIT MIT", False),
        ("(MIT", False),
        ("MIT OR", False),
        ("OR MIT", False),
        ("(" * 5000 + "MIT" + ")" * 5000, False),
    ],
)
def test_expressions(expression: str, allowed: bool) -> None:
    assert is_allowed(expression, ALLOWED) is allowed


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("# SPDX-License-Identifier: GPL-2.0-only OR MIT\nx = 1", "GPL-2.0-only OR MIT"),
        ("/* SPDX-License-Identifier: Apache-2.0 */", "Apache-2.0"),
        ("# Licensed under the Apache License,\n# Version 2.0 (the License)", "Apache-2.0"),
        (" * Permission is hereby granted, free of\n * charge, to any person", "MIT"),
        ("# under the terms of the GNU General\n# Public License as published", "GPL-2.0-or-later"),
        ("# GNU Lesser General Public License", "LGPL-2.1-or-later"),
        ("def f(): pass", None),
        ("x = 1\n" * 2000 + "# SPDX-License-Identifier: MIT", None),
    ],
)
def test_headers(text: str, name: str | None) -> None:
    assert license_of_text(text) == name


def test_the_filter_says_why() -> None:
    block = KeepLicensed(CodeLicense(languages=["Python"]))
    rows = [
        {"text": "x = 1", "license": "MIT", "programming_language": "Python"},
        {"text": "# GNU General Public License", "license": "MIT", "programming_language": "Python"},
        {"text": "x = 1", "programming_language": "Python"},
        {"text": "x = 1", "license": "MIT", "programming_language": "Perl"},
    ]
    assert filtered(block, rows) == [
        (True, None),
        (False, "license_not_allowed"),
        (False, "license_unknown"),
        (False, "programming_language"),
    ]


def test_installed_packages_name_their_licences() -> None:
    found = licenses_of_packages()
    assert found["pytest"] == "MIT" and is_allowed(found["numpy"], CodeLicense().allow)


def test_docstrings_are_the_strings_that_begin_a_line() -> None:
    long = "It tells at some length what the function does, and a little more than that."
    source = f'''"""Module. {long}"""
X = """not {long}"""
def f():
    r"""First. {long}

    Again:
        Indented.
    """
    return """no {long}"""
class C:
    \'\'\'Third. {long}\'\'\'
    y = 1
def g():
    """short"""
'''
    assert docstrings(source) == f"Module. {long}\n\nFirst. {long}\n\nAgain:\n    Indented.\n\nThird. {long}"
    assert docstrings('"""' * 1001) == ""
    assert package_description("Name: x\r\n\r\nBody\n") == "Body" and package_description("Name: x") == ""
