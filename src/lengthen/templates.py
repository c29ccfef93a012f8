"""jinja2 templates that lie beside the modules that fill them."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape

__all__ = ["template"]


@cache
def template(package: str, name: str) -> Template:
    """A template of a package; what an HTML one is given is escaped.

    Args:
        package: such as "lengthen.report".
        name: of the file.
    """
    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=select_autoescape(["html.j2"], default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
