"""Filter curves, through which the templates have their colours.

A survey's `bandpass` names the curve of every band. ``{band}`` stands for the band's name:

- ``speclite:hsc2017-{band}``: a curve of the speclite package (LSST, HSC, DECam, Euclid, SDSS, Pan-STARRS, ...);
- ``LSST_{band}.dat``: a file that GalSim ships;
- ``./curves/{band}.dat``: a name with a folder in it is a file of your own, relative to the working folder.

GalSim's files and yours have two columns of text: the wavelength in nm, and the throughput per photon in any unit,
since only colours are used. Lines that begin with # are comments.
"""

from __future__ import annotations

from pathlib import Path

import galsim
import numpy as np

SPECLITE = "speclite:"
WAVELENGTHS = 36.4, 2205.0  # nm; the templates cover 9.1 to 2205 nm, and are seen at redshifts from 0 to 3


def filter_curve(bandpass: str, band: str) -> galsim.Bandpass:
    """Return the filter curve of one band.

    Parameters
    ----------
    bandpass : str
        The survey's `bandpass`, as above.
    band : str

    Returns
    -------
    galsim.Bandpass

    Raises
    ------
    ValueError
        There is no such curve, or no template reaches its wavelengths.
    """
    name = bandpass.format(band=band)
    where = f"survey.bandpass, band {band!r}"
    if name.startswith(SPECLITE):
        wavelength, throughput = _speclite(name.removeprefix(SPECLITE), where)
    else:
        own = len(Path(name).parts) > 1
        path = Path(name) if own else Path(galsim.meta_data.share_dir) / "bandpasses" / name
        if not path.is_file():
            raise ValueError(f"{where}: no file {path.absolute()}" + ("" if own else
                             "; a curve of your own needs a folder in its name, as in ./curves/" + name))
        if not own:
            return galsim.Bandpass(str(path), wave_type="nm")
        try:
            wavelength, throughput = np.loadtxt(path, unpack=True, ndmin=2)
        except ValueError as error:
            raise ValueError(f"{where}: {path}: expected two columns of numbers: {error}") from error
    if wavelength.min() < WAVELENGTHS[0] or wavelength.max() > WAVELENGTHS[1]:
        raise ValueError(f"{where}: expected wavelengths from {WAVELENGTHS[0]} to {WAVELENGTHS[1]} nm, as far as the "
                         f"templates reach, got {wavelength.min():g} to {wavelength.max():g} (not in Angstrom?)")
    return galsim.Bandpass(galsim.LookupTable(wavelength, throughput, "linear"), wave_type="nm")


def _speclite(name: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    from speclite import filters

    try:
        curve = filters.load_filter(name)
    except ValueError as error:
        raise ValueError(f"{where}: speclite has no curve {name!r}: {error}") from error
    return curve.wavelength / 10, curve.response  # Angstrom to nm
