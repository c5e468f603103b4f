"""The pages agree with the repository: the map of the modules, and every link."""

import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'ros2_nanochat'
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]


def test_the_map_has_one_line_for_every_module_and_none_for_others():
    page = (ROOT / 'docs' / 'architecture.md').read_text()
    listed = re.findall(r'^\| `([\w/]+\.py)` \| \S.{5,}\|$', page.split('## The map')[1], re.M)
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob('*.py')}
    packages = {module for module in modules if module.endswith('/__init__.py')}
    assert len(listed) == len(set(listed))
    assert modules - packages - set(listed) == set(), 'give each a line in docs/architecture.md'
    assert set(listed) - modules == set(), 'docs/architecture.md lists modules that are gone'


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the sites that show Markdown make them."""
    headings = re.findall(r'^#+ (.*)$', re.sub(r'```.*?```', '', page.read_text(), flags=re.S), re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
        if re.match(r'https?:', target):
            continue
        path, _, anchor = target.partition('#')
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f'{page.name}: {target}'
        if anchor:
            assert anchor in anchors(place), f'{page.name}: {target}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_code_in_pages_is_python_that_compiles(page):
    for source in re.findall(r'^```python\n(.*?)^```', page.read_text(), re.M | re.S):
        compile(textwrap.dedent(source), page.name, 'exec')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_files_in_pages_are_yaml_that_can_be_read(page):
    yaml = pytest.importorskip('yaml')
    for source in re.findall(r'^ *```yaml\n(.*?)^ *```', page.read_text(), re.M | re.S):
        assert list(yaml.safe_load_all(textwrap.dedent(source))), page.name


def test_the_index_lists_every_page():
    index = (ROOT / 'docs' / 'index.md').read_text()
    for page in (ROOT / 'docs').glob('*.md'):
        assert page.name == 'index.md' or f']({page.name})' in index, page.name


@pytest.mark.parametrize(
    'name, command', [('demo', 'make demo'), ('terminal', 'python3 -m ros2_nanochat.chat')]
)
def test_the_picture_of_a_terminal_names_the_command_that_it_shows(name, command):
    picture = (ROOT / 'docs' / 'images' / f'{name}.svg').read_text().replace('&#160;', ' ')
    assert re.findall(r'-title"[^>]*>([^<]*)<', picture) == [command]
