"""Run one of mmdet's own tools on models and data of this package, with mmcv-lite, too.

    python -m ddetr_plugin.mmdet_tool NAME ARGUMENTS ...
    python -m ddetr_plugin.mmdet_tool analyze_results CONFIG predictions.pkl folder

NAME is that of a script which mmdet brings along, or the path of any other. Without arguments the
names are listed. The script runs as it is, except for two things: this package is imported, which
lets mmdet load where mmcv has no compiled operators, and mmdet's `get_loading_pipeline` and
`DetInferencer` take this package's loaders for the loaders of mmdet that they stand for.
"""

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

__all__ = ['find_tool', 'main', 'mmdet_tools']


def mmdet_tools() -> dict[str, Path]:
    """The scripts that the installed mmdet brings along, by name, such as 'analyze_results'.

    Raises:
        ModuleNotFoundError: mmdet is not installed.
        FileNotFoundError: it has none, as where mmdet runs from a checkout; give their paths.
    """
    spec = find_spec('mmdet')
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError('mmdet is not installed: pip install mmdet==3.3.0')
    folder = Path(spec.origin).parent / '.mim' / 'tools'
    tools = {path.stem: path for path in sorted(folder.rglob('*.py'), reverse=True)}
    if not tools:
        raise FileNotFoundError(f'there are no tools of mmdet in {folder}; give the path of one')
    return tools


def find_tool(name: str) -> Path:
    """The script of this name, or at this path.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    tools = mmdet_tools()
    if path.stem not in tools:
        raise FileNotFoundError(
            f'{name} is neither a file nor a tool of mmdet; those are {", ".join(sorted(tools))}'
        )
    return tools[path.stem]


def recognise_loaders() -> None:
    """Let mmdet's helpers find this package's loaders in a pipeline."""
    import mmdet.datasets as datasets
    from mmdet.apis import DetInferencer

    from ddetr_plugin.datasets import with_mmdet_loaders

    load, prepare = datasets.get_loading_pipeline, DetInferencer._init_pipeline

    def get_loading_pipeline(pipeline):
        return load(with_mmdet_loaders(pipeline))

    def init_pipeline(inferencer, config):
        dataset = config.test_dataloader.dataset
        dataset.pipeline = with_mmdet_loaders(dataset.pipeline)
        return prepare(inferencer, config)

    datasets.get_loading_pipeline = datasets.utils.get_loading_pipeline = get_loading_pipeline
    DetInferencer._init_pipeline = init_pipeline


def main(arguments: list[str] | None = None) -> None:
    """Run the tool that the first argument names with the others."""
    name, *arguments = (sys.argv[1:] if arguments is None else arguments) or ['--help']
    if name in ('-h', '--help'):
        print(__doc__)
        print('\n'.join(sorted(mmdet_tools())))
        return
    try:
        script = find_tool(name)
    except FileNotFoundError as error:
        sys.exit(f'error: {error}')
    recognise_loaders()
    # As Python does for a script.
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(script.parent)
    runpy.run_path(str(script), run_name='__main__')


if __name__ == '__main__':
    main()
