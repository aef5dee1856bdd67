"""YAML that is read as people mean it: no repeated keys, no numbers in base 8 or 60."""

import re
from typing import Any

import yaml

from tarflow.errors import ConfigError

ODD_NUMBER = re.compile(r"[-+]?0[0-7_]|.*:")  # YAML reads 0100 as 64, and 1:30 as 90


def parse(text: str, where: str) -> Any:
    """Return the content of a YAML document.

    Args:
        text: The document.
        where: Name of its file, for messages.

    Raises:
        ConfigError: If it is not YAML, repeats a key, or has a number that YAML misreads.
    """
    try:
        return _Loader(text).get_single_data()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        words = " ".join(filter(None, (error.context, error.problem)))
        if "'\\t'" in words:
            words = "a tab: indent with spaces"
        raise ConfigError(f"{where} is not YAML: {line}{words}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # such as a date of no calendar
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from None


class _Loader(yaml.SafeLoader):
    """Reads YAML, but refuses a repeated key and a number that YAML reads as no one expects."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        node = super().compose_node(parent, index)
        if node and node.tag.endswith((":int", ":float")) and ODD_NUMBER.match(str(node.value)):
            key = index.value if isinstance(index, yaml.Node) else "an item"
            raise ConfigError(
                f"line {node.start_mark.line + 1}: {key} is {node.value}, which YAML reads in "
                "base 8 or 60: write a decimal number, or quote it if it is a name"
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"line {line} repeats the key '{key.value}': keep one of them")
            seen.add((key.tag, str(key.value)))
        return node
