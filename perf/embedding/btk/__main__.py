"""The engine judged by the Blending ToolKit (BTK).

    python -m perf.embedding.btk --environment FOLDER --catalog FILE

The script makes an environment with BTK in ``FOLDER/btk``, because BTK pins other versions than ours. There BTK's own
generator draws blends from its catalogue, ``data/sample_input_catalog.fits`` of a clone of BTK. They are deblended with
our plug-in and with BTK's own deblenders. The script prints BTK's metrics, causes faults, and writes
``perf/results/embedding/btk.json``. ``--with FOLDER`` also installs a clone with pip: BTK's `Scarlet` needs scarlet
(pmelchior/scarlet), which no registry has.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from perf import report
from perf.embedding import own_environment, record
from perf.peers.peer import Missing

COLUMNS = {"recall": "recall", "precision": "precision", "MSE": "RMS [electron]", "PSNR": "PSNR [dB]",
           "StructSim": "SSIM", "aperture_flux_error": "aperture flux error", "aperture_flux_bias": "its median sign",
           "cpu_ms_per_source": "ms per source"}


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; returns 1 if BTK's environment cannot be made or a row was lost."""
    parser = argparse.ArgumentParser(prog="python -m perf.embedding.btk", description=__doc__.partition("\n")[0])
    parser.add_argument("--environment", type=Path, required=True, help="folder of environments")
    parser.add_argument("--catalog", type=Path, required=True, help="sample_input_catalog.fits of a clone of BTK")
    parser.add_argument("--with", dest="further", action="append", default=[], help="a clone that pip installs besides")
    parser.add_argument("--n-blend", type=int, default=24)
    args = parser.parse_args(argv)
    request = {"catalog": str(args.catalog.absolute()), "n_blend": args.n_blend, "max_number": 6, "max_mag": 25.3,
               "seed": 7}
    try:
        python = own_environment.make(args.environment, Path(__file__).with_name("btk.txt"), args.further)
        answer = own_environment.run(python, "perf.embedding.btk.judge", request)
    except Missing as why:
        print(f"BTK does not run: {why}", file=sys.stderr)
        return 1
    print(f"{answer['n_source']} sources in {answer['n_blend']} blends, LSST ten years, i < {request['max_mag']}; "
          f"reconstruction in i, of the {answer['figures']['deblendrt']['n_common']} sources that all have")
    print(report.markdown_table(["", *COLUMNS.values()], [
        [name, *(report.number(found[key]) for key in COLUMNS)] for name, found in answer["figures"].items()]))
    for name, why in answer["missing"].items():
        print(f"{name} did not run: {why}")
    print("flux over the true image's light, median of S/N > 50 and blendedness < 0.05: " + ", ".join(
        f"{band} {found[0]:.3f} ({found[1]})" for band, found in answer["bright_flux_ratio"].items() if found))
    broken = answer.pop("faults")
    return record.store("btk", f"{parser.prog} --environment FOLDER --catalog FILE", broken, answer)


if __name__ == "__main__":
    sys.exit(main())
