"""Small valid files to damage. They are made here, so that an input depends on the seed alone."""

from __future__ import annotations

import functools
import gzip
import io
import json
import random
import struct
import warnings
import zipfile
import zlib
from typing import Any

import numpy as np

from perf.fuzz import wire

ARCHIVE_NAMES = ("a", "decode.in.latent")
JSON_WORDS = (b"format_revision", b"files", b"../x", b"NaN", b"Infinity", b"null", b"true", b"1e999", b"\\ud800",
              b"\\u0000",
              b"[[[[[[[[", b'{"a":', b"]", b"}", b'"', b"\xff", b"\xef\xbb\xbf", b"9" * 400, b"basis.npy",
              b"population")
ONNX_WORDS = (b"location", b"../weights.bin", b"/etc/passwd", b"external", b"If", b"Loop", b"Scan", b"Expand",
              b"ConstantOfShape", b"com.microsoft", b"ai.onnx.ml", b"MatMul", b"decode", b"\x6a\x00", b"\x70\x01",
              b"\xff" * 9 + b"\x01", b"\x80" * 10, b"\xff\xff\xff\x7f", b"latent", b"N", b"Constant")
ARRAY_WORDS = (b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00", b"'descr': '<f4'", b"'|O'", b"'<f8'",
               b"(999999999, 999999999)", b"True", b"False", b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06",
               b"\xff\xff\xff\xff", b"a.npy", b"cos\nsystem\n",
               b"((((", b"\n", b"}", b"(1,)", b"-1")
FITS_CARDS = (
    "SIMPLE  =                    T", "XTENSION= 'IMAGE   '", "XTENSION= 'BINTABLE'", "XTENSION= 'TABLE   '", "END",
    "BITPIX  =                  -32", "BITPIX  =                    7", "NAXIS   =                    2",
    "NAXIS   =                  999", "NAXIS1  =           2147483647", "NAXIS2  =  9223372036854775807",
    "NAXIS3  =                   -1", "PCOUNT  =           4294967296", "GCOUNT  =                    0",
    "GROUPS  =                    T", "EXTEND  =                    T", "ZIMAGE  =                    T",
    "ZCMPTYPE= 'RICE_1  '", "ZCMPTYPE= 'GZIP_2  '", "ZCMPTYPE= 'HCOMPRESS_1'", "ZCMPTYPE= 'PLIO_1  '",
    "ZBITPIX =                  -64", "ZNAXIS  =                    3", "ZNAXIS1 =           1000000000",
    "ZNAXIS2 =           1000000000", "ZTILE1  =           1000000000", "ZTILE2  =                    0",
    "ZQUANTIZ= 'SUBTRACTIVE_DITHER_1'", "ZSCALE  =                  0.0", "ZBLANK  =                    1",
    "ZNAME1  = 'BLOCKSIZE'", "ZVAL1   =                   31", "THEAP   =           4294967296", "TFIELDS =    999",
    "TFORM1  = '1PE(1000000000)'", "TFORM1  = '1QD(99)'", "TFORM2  = '999999999D'", "TFORM1  = '0A      '",
    "TFORM1  = 'X       '", "TDIM1   = '(9,9,9)'", "TDIM2   = '(1000000,1000000)'", "TNULL1  =   -1", "TSCAL1  =   0",
    "TZERO1  = 1E400", "TTYPE1  = 'x       '", "TTYPE2  = 'y       '", "TUNIT1  = 'deg**999999'", "TBCOL1  =  -5",
    "BUNIT   = 'nJy     '", "BUNIT   = 'nJy/sr  '", "BUNIT   = '10**(-9) Jy'", "BUNIT   = 'm**99999999999'",
    "BUNIT   = '1e999 nJy'", "BUNIT   =                    5", "ZEROPNT =                 27.0",
    "ZEROPNT = 'x       '", "FLUXMAG0=                 -1.0", "MAGZERO =", "BANDS   = 'g,r,i   '",
    "BANDS   = 'ggg     '",
    "BAND    =                    1", "FILTER  = 'HSC-I   '", "PIXSCALE= 'abc     '", "EXTNAME = 'IMAGE   '",
    "EXTNAME = 'MASK    '", "EXTNAME = 'PSF     '", "EXTNAME = 'VARIANCE'", "EXTNAME = 'CENTERS '", "EXTNAME = 'g'",
    "EXTNAME = 'g_MASK  '", "EXTNAME =                    3", "MP_BAD  =                   99", "MP_SAT  =   -1",
    "MP_EDGE = 'x       '", "HIERARCH ESO very long key = 1", "HIERARCH MP_BAD = 3", "CONTINUE  'abc&'",
    "LONGSTRN= 'OGIP 1.0'", "COMMENT", "BSCALE  =                  0.0", "BZERO   =              1E+308",
    "BLANK   =                    0", "WCSAXES =                 9999", "WCSAXES =                    3",
    "CTYPE1  = 'RA---TAN'", "CTYPE2  = 'DEC--TAN'", "CTYPE1  = 'RA---TAN-SIP'", "CTYPE2  = 'DEC--TAN-SIP'",
    "CTYPE1  = 'RA---TAB'", "CTYPE1  = 'RA---TPV'", "CTYPE1  = 'RA---ZPN'", "CTYPE1  = 'FREQ    '", "CTYPE1  =  1",
    "CRPIX1  =                nan", "CRPIX99 =                  1.0", "PC99_99 =                  1.0",
    "PC1_1   =                  0.0", "CD1_1   =                  0.0", "CD2_2   =               1E-400",
    "CDELT1  =                  0.0", "A_ORDER =                    2", "A_ORDER =               100000",
    "B_ORDER =                    2", "AP_ORDER=                   -1", "A_2_0   =                 1E99",
    "PV1_1   =                  1.0", "PV2_99  =                  1.0", "PS1_0   = 'x       '", "LONPOLE =  400",
    "EQUINOX = 'x       '", "RADESYS = 'FK5     '", "CPDIS1  = 'LOOKUP  '", "D2IMDIS1= 'LOOKUP  '",
    "DP1     = 'NAXES: 2'",
    "CUNIT1  = 'deg     '", "CUNIT1  = 'xyz     '", "DATE-OBS= '2020-99-99'", "MJD-OBS = 1E300", "OBSGEO-X= 1",
    "REVISION=                    4", "BUNDLE  = '../../x '", "MODELSHA= 'x       '", "NITER   = 'x       '",
)
FITS_WORDS = (*(card.encode() for card in FITS_CARDS), b"\x00" * 80, b"\xff" * 80, b"\n" * 10, "é".encode() * 10,
              b"END" + b" " * 77, b"'" * 20, b"&")
CATALOG_WORDS = (b"x,y\n", b"ra,dec\n", b"id", b"kind", b"star", b"nan", b"1e400", b",,,,", b'"', b"'", b"\r", b"\x00",
                 b"# %ECSV 1.0\n", b"# ---\n", b"# - {name: x, datatype: float64}\n", b"&a [*a,*a]",
                 b"!!python/object:os.system",
                 b"# delimiter: ','\n", b"object", b"datatype", b"subtype: json", b"# schema: astropy-2.0\n",
                 b"meta: !!omap", b"__serialized_columns__", b"__class__: astropy.time.Time", b"unit: deg",
                 b"\xef\xbb\xbf",
                 b"\xff\xfe", b"9" * 500, b"float64[1000000000]", b"x" * 5000)
AVRO_WORDS = (b"Obj\x01", b"avro.schema", b"avro.codec", b"deflate", b"\x00\x00\x00\x00\x07", b"\xff" * 9 + b"\x01",
              b"\x80" * 9, b"\xfe\xff\xff\xff\x0f", b"\x00", b"\x02", b"diaSource", b"candidate", b"record", b"union",
              b'"null"', b'"array"', b'"map"', b'"fixed"', b'"size"', b"decimal", b"items", b"fields", b"SIMPLE  =")


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def arrays() -> list[bytes]:
    """NumPy files."""
    found = [_npy(np.arange(n, dtype=np.float32).reshape(shape))
             for n, shape in ((6, (2, 3)), (0, (3, 0, 0)), (8, (2, 2, 2)))]
    found.append(_npy(np.asfortranarray(np.ones((2, 3), np.float32))))
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for name in ARCHIVE_NAMES:
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), _npy(np.zeros(50, np.float32)), method)
        found.append(file.getvalue())
    return found


@functools.cache
def _shipped(name: str) -> bytes:
    from deblendrt.engine.model.bundle import load_bundle

    bundle = load_bundle("lsst")
    return (bundle.path / "manifest.json").read_bytes() if name == "manifest.json" else bundle.read(name)


def manifests() -> list[bytes]:
    """The shipped manifest, and a small manifest of one band and two shapes."""
    full = json.loads(_shipped("manifest.json"))
    small = full | {"bands": ["i"], "reference_band": "i", "n_shape": 2, "start_shape": [0.0, 0.0],
                    "prior_curvature": [[1.0, 0.0], [0.0, 1.0]], "training": {
                        "population": {"magnitude_min": 16.5, "magnitude_max": 26.5}},
                    **{key: [1.0] for key in ("psf_fwhm", "sky_sigma", "mean_color", "color_sigma")}}
    return [json.dumps(small).encode()] * 7 + [_shipped("manifest.json")]


@functools.cache
def graphs() -> list[bytes]:
    """The first nodes of the shipped graphs."""
    return [wire.encode(wire.shrunk(wire.decode(_shipped(name)), n)) for name, n in (
        ("encode.onnx", 6), ("decode.onnx", 4), ("log_prior.onnx", 10), ("decode_jacobian.onnx", 12))]


def _graph(nodes: list[tuple[str, list[bytes], bytes, list[wire.Field]]], tensors: dict[bytes, np.ndarray]) -> bytes:
    """A model from x, float32 (N, 3), to y."""
    def value(name: bytes, *sizes: int) -> list[wire.Field]:
        axes = [[1, 2, [[2, 2, b"N"]]], *([1, 2, [[1, 0, size]]] for size in sizes)]
        return [[1, 2, name], [2, 2, [[1, 2, [[1, 0, 1], [2, 2, axes]]]]]]

    graph: list[wire.Field] = [[1, 2, [*([1, 2, name] for name in inputs), [2, 2, output], [4, 2, op.encode()],
                                       *attributes]] for op, inputs, output, attributes in nodes]
    graph.append([2, 2, b"main"])
    graph += [[5, 2, [*([1, 0, n] for n in array.shape), [2, 0, 7 if array.dtype == np.int64 else 1], [8, 2, name],
                      [9, 2, array.tobytes()]]] for name, array in tensors.items()]
    graph += [[11, 2, value(b"x", 3)], [12, 2, value(b"y", 4)]]
    return wire.encode([[1, 0, 10], [7, 2, graph], [8, 2, [[1, 2, b""], [2, 0, 18]]]])


@functools.cache
def sessions() -> list[bytes]:
    """Small graphs that run."""
    w, axis = np.ones((3, 4), np.float32), [[5, 2, [[1, 2, b"axis"], [3, 0, 1], [20, 0, 2]]]]
    whole = np.array([-1, 4]), np.array([0]), np.array([2**63 - 1]), np.array([1])
    return [
        _graph([("MatMul", [b"x", b"w"], b"a", []), ("Sigmoid", [b"a"], b"b", []), ("Mul", [b"a", b"b"], b"c", []),
                ("Reshape", [b"c", b"s"], b"y", [])], {b"w": w, b"s": whole[0]}),
        _graph([("Gemm", [b"x", b"w"], b"a", []), ("Slice", [b"a", b"i", b"j", b"k"], b"b", []),
                ("Softmax", [b"b"], b"c", axis), ("Expand", [b"c", b"s"], b"y", [])],
               {b"w": w, b"s": np.array([1, 4]), b"i": whole[1], b"j": whole[2], b"k": whole[3]}),
        _graph([("Split", [b"x", b"p"], b"a", axis), ("Concat", [b"a", b"x"], b"b", axis),
                ("Pow", [b"b", b"q"], b"c", []), ("Pad", [b"c", b"r"], b"y", [])],
               {b"p": np.array([3]), b"q": np.float32(2) * np.ones((), np.float32), b"r": np.array([0, 0, 0, -2])}),
    ]


@functools.cache
def bundle_files() -> dict[str, bytes]:
    """Files of a small bundle of one band. It loads, but its graphs are not what its manifest promises."""
    manifest = json.loads(manifests()[0]) | {"stamp_size": 5, "outskirts_binning": 1, "n_basis": 3, "n_component": 2}
    files = {"basis.npy": _npy(np.ones((3, 5, 5), np.float32)), "outskirts.npy": _npy(np.zeros((3, 0, 0), np.float32)),
             "shift.npy": _npy(np.zeros((2, 3, 3), np.float32)), "psf.npy": _npy(np.ones((1, 3, 3), np.float32)),
             "detail_shared.npy": _npy(np.zeros((2, 3), np.float32)),
             "detail_band.npy": _npy(np.zeros((1, 3), np.float32)),
             "golden.npz": arrays()[-1]}
    for name in ("decode", "decode_pullback", "decode_jacobian", "log_prior", "encode"):
        files[f"{name}.onnx"] = wire.encode(wire.shrunk(wire.decode(_shipped(f"{name}.onnx")), 3))
    import hashlib

    manifest["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return files | {"manifest.json": json.dumps(manifest).encode()}


def bundles() -> list[bytes]:
    """Each file of the bundle, behind a byte that names it."""
    contents = bundle_files()
    names = sorted(set(contents) - {"manifest.json"})
    return [bytes([k]) + contents[name] for k, name in enumerate(names)]


def _bytes_of(hdus: Any) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hdus.writeto(file, output_verify="silentfix")
    return file.getvalue()


def _wcs_cards() -> dict[str, Any]:
    return {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0, "CRPIX1": 4.0, "CRPIX2": 4.0,
            "CD1_1": -5.6e-5, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 5.6e-5, "CUNIT1": "deg", "CUNIT2": "deg"}


def headers() -> list[bytes]:
    """Headers of images."""
    from astropy.io import fits

    sip = {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-5, "B_0_2": 1e-5}
    pc = {"WCSAXES": 3, "CTYPE3": "FREQ", "PC1_1": 1.0, "CDELT1": -5e-5, "CDELT2": 5e-5, "PV2_1": 1.0, "LONPOLE": 180.0}
    found = []
    for cards in ({"BUNIT": "nJy", "BANDS": "g,r,i", "PIXSCALE": 0.2}, {"ZEROPNT": 27.0, "FILTER": "i"} | _wcs_cards(),
                  {"BUNIT": "count", "MAGZERO": 30.0} | _wcs_cards() | sip, {"FLUXMAG0": 6e10} | _wcs_cards() | pc):
        header = fits.PrimaryHDU(np.zeros((2, 3), np.float32)).header
        header.update(cards)
        found.append(header.tostring().encode())
    return found


@functools.cache
def images() -> list[bytes]:
    """Scenes in every layout that the engine reads, plain and compressed."""
    from astropy.io import fits
    from astropy.table import Table

    rng = np.random.default_rng(0)
    cube = rng.normal(size=(3, 8, 9)).astype(np.float32)
    bands = fits.BinTableHDU(Table({"band": ["g", "r", "i"], "sky_sigma": [1.0, 2, 3]}), name="BANDS")
    centers = fits.BinTableHDU(Table({"x": [3.5, 4], "y": [2.0, 7]}), name="CENTERS")
    sky = fits.BinTableHDU(Table({"ra": [150.0], "dec": [2.0]}), name="CENTERS")

    def hdu(data: np.ndarray, name: str, **cards: Any) -> Any:
        return fits.ImageHDU(data, fits.Header(cards), name=name)

    def packed(data: np.ndarray, name: str, kind: str, **options: Any) -> Any:
        return fits.CompImageHDU(data, name=name, compression_type=kind, **options)

    mask = (cube > 1).astype(np.int32)
    ragged = fits.BinTableHDU.from_columns([
        fits.Column("x", "PD()", array=np.array([np.ones(3), np.ones(2)], object)),
        fits.Column("y", "D", array=[1, 2])], name="CENTERS")
    text = fits.TableHDU.from_columns([fits.Column("x", "F8.3", array=[1.0, 2.0], ascii=True),
                                       fits.Column("y", "F8.3", array=[1.0, 2.0], ascii=True)], name="CENTERS")
    files = [
        [hdu(cube, "IMAGE", BUNIT="nJy"), hdu(cube**2, "VARIANCE"), hdu(mask, "MASK", MP_BAD=0, MP_SAT=1),
         hdu(np.ones((3, 5, 5)), "PSF"), bands, centers],
        [hdu(cube[0], "IMAGE", **_wcs_cards(), ZEROPNT=27.0, FILTER="i"), sky],
        [hdu(cube[0], "g", BUNIT="nJy"), hdu(cube[1], "r", BUNIT="nJy"), hdu(mask[0], "g_MASK"), hdu(mask[1], "r_MASK"),
         hdu(np.ones((3, 3)), "g_PSF"), hdu(np.ones((5, 5)), "r_PSF")],
        [hdu((100 * cube).astype(np.int16), "IMAGE", BSCALE=0.1, BZERO=32768, BLANK=7), text],
        [hdu(cube[0], "IMAGE"), ragged],
        [packed((100 * cube[0]).astype(np.int32), "IMAGE", "RICE_1"), packed(mask[0], "MASK", "PLIO_1")],
        [packed(cube[0], "IMAGE", "GZIP_2", quantize_level=0), packed(cube[0] ** 2, "VARIANCE", "HCOMPRESS_1")],
        [packed(cube, "IMAGE", "RICE_1", tile_shape=(1, 8, 9))],
    ]
    found = [_bytes_of(fits.HDUList([fits.PrimaryHDU(), *(h.copy() for h in hdus)])) for hdus in files]
    primary = fits.PrimaryHDU(cube, fits.Header({"BANDS": "gri", "PIXSCALE": 0.2}))
    found.append(_bytes_of(fits.HDUList([primary, centers.copy()])))
    found.append(gzip.compress(found[1], mtime=0))
    return found


def psfs() -> list[bytes]:
    """Files of PSFs."""
    from astropy.io import fits

    return [_bytes_of(fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.ones(shape, np.float32), name="PSF")]))
            for shape in ((3, 5, 5), (5, 5))]


@functools.cache
def catalogs() -> list[bytes]:
    """Tables of positions."""
    from astropy.io import fits
    from astropy.table import Table

    table = Table({"id": [1, 2, 3], "x": [1.0, 2.5, 3], "y": [4.0, 5.5, 6], "kind": ["galaxy", "star", "auto"]})
    ecsv = io.StringIO()
    table.write(ecsv, format="ascii.ecsv")
    ragged = fits.BinTableHDU.from_columns([
        fits.Column("x", "D", array=[1.0, 2]), fits.Column("y", "E", array=[1.0, 2], unit="pixel"),
        fits.Column("more", "PJ()", array=np.array([np.arange(3), np.arange(2)], object))])
    return [b"id,x,y,kind\n1,1.5,2.5,galaxy\n2,3,4,star\n3,,5,auto\n", b"ra,dec\n150.0,2.0\n", b"x,y\n1,2\n",
            ecsv.getvalue().encode(), _bytes_of(fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(table)])),
            _bytes_of(fits.HDUList([fits.PrimaryHDU(), ragged]))]


@functools.cache
def results() -> list[bytes]:
    """Results of two scenes with three sources, with images and without."""
    import tempfile
    from pathlib import Path

    from deblendrt.engine.deblender import Deblender

    rng = np.random.default_rng(0)
    result = Deblender.load("lsst").deblend_batch([rng.normal(size=(6, 12, 12)), rng.normal(size=(6, 10, 12))],
                                                  [[(5, 5), (8, 6)], [(4, 4)]], n_iteration=1, psf="nominal")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for images_too in (False, True):
            result.write(Path(folder) / "r.fits", images=images_too, overwrite=True)
            found.append((Path(folder) / "r.fits").read_bytes())
    return found


def numbers() -> list[bytes]:
    """Bytes from which arguments are made."""
    rng = random.Random(0)
    return [rng.randbytes(24) for _ in range(64)]


# A schema with Rubin's and ZTF's fields, as far as the reader knows them, and each kind of type.
_SCHEMA: dict[str, Any] = {
    "type": "record", "name": "alert", "namespace": "test", "fields": [
        {"name": "alertId", "type": ["null", "long"]}, {"name": "candid", "type": ["null", "long"]},
        {"name": "diaSource", "type": ["null", {"type": "record", "name": "source", "fields": [
            {"name": "diaSourceId", "type": "long"}, {"name": "diaObjectId", "type": ["null", "long"]},
            {"name": "ra", "type": "double"}, {"name": "dec", "type": "double"},
            {"name": "band", "type": ["null", "string"]}, {"name": "snr", "type": "float"},
            {"name": "flag", "type": "boolean"}]}]},
        {"name": "prvDiaSources", "type": ["null", {"type": "array", "items": "source"}]},
        {"name": "tags", "type": {"type": "map", "values": "int"}},
        {"name": "kind", "type": {"type": "enum", "name": "kind", "symbols": ["a", "b"]}},
        {"name": "digest", "type": {"type": "fixed", "name": "digest", "size": 4}},
        {"name": "candidate", "type": ["null", {"type": "record", "name": "candidate", "fields": [
            {"name": "ra", "type": "double"}, {"name": "dec", "type": "double"}, {"name": "fid", "type": "int"},
            {"name": "magzpsci", "type": ["null", "float"]}]}]},
        {"name": "cutoutScience", "type": ["null", "bytes"]},
        {"name": "cutoutDifference", "type": ["null", {"type": "record", "name": "cutout", "fields": [
            {"name": "fileName", "type": "string"}, {"name": "stampData", "type": "bytes"}]}]}]}


def alert_schema() -> str:
    """The schema as JSON."""
    return json.dumps(_SCHEMA)


def _long(value: int) -> bytes:
    return wire._bytes((value << 1) ^ (value >> 63))


def _text(value: bytes) -> bytes:
    return _long(len(value)) + value


def alert_record(rubin: bool = True) -> bytes:
    """An Avro record of the schema."""
    source = (_long(77) + b"\x02" + _long(5) + struct.pack("<dd", 150.0, 2.0) + b"\x02" + _text(b"i")
              + struct.pack("<f", 9.0) + b"\x01")
    candidate = b"\x02" + struct.pack("<dd", 150.0, 2.0) + _long(2) + b"\x02" + struct.pack("<f", 26.0)
    middle = _long(1) + _text(b"t") + _long(-3) + b"\x00" + b"\x02" + b"abcd"
    stamp = stamps()[0]
    history = b"\x02" + _long(2) + source + source + b"\x00"
    if rubin:
        cutouts = b"\x02" + _text(stamp) + b"\x02" + _text(b"f") + _text(stamp[:100])
        return b"\x02" + _long(99) + b"\x00" + b"\x02" + source + history + middle + b"\x00" + cutouts
    return b"\x00\x02" + _long(99) + b"\x00" + b"\x00" + middle + candidate + b"\x02" + _text(stamps()[2]) + b"\x00"


def container(schema: bytes, record: bytes, codec: bytes = b"null") -> bytes:
    """An object container of one record."""
    block = record if codec == b"null" else zlib.compress(record, wbits=-15)
    meta = _long(2) + _text(b"avro.schema") + _text(schema) + _text(b"avro.codec") + _text(codec) + b"\x00"
    return b"Obj\x01" + meta + bytes(16) + _long(1) + _text(block) + bytes(16)


@functools.cache
def alerts() -> list[bytes]:
    """Messages in the framings of Rubin and ZTF."""
    schema = alert_schema().encode()
    records = alert_record(), alert_record(rubin=False)
    return [b"\x00\x00\x00\x00\x07" + record for record in records] + [
        container(schema, record, codec) for record in records for codec in (b"null", b"deflate")]


def alert_schemas() -> list[bytes]:
    """The schema as a seed."""
    return [alert_schema().encode()]


@functools.cache
def stamps() -> list[bytes]:
    """Cutouts in Rubin's and ZTF's formats."""
    from astropy.io import fits

    image = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    wcs = {key: value for key, value in _wcs_cards().items() if key[:2] in ("CR", "CD")}
    rubin = _bytes_of(fits.HDUList([
        fits.PrimaryHDU(image, fits.Header({"BUNIT": "nJy"} | wcs)),
        fits.ImageHDU(image**2, fits.Header({"UTYPE": "VarianceUncertainty"}), name="UNCERT"),
        fits.ImageHDU((image > 1).astype(np.int32), fits.Header({"MP_BAD": 0}), name="MASK"),
        fits.ImageHDU(np.ones((5, 5)), name="PSFIMAGE")]))
    plain = _bytes_of(fits.HDUList([fits.PrimaryHDU((100 * image).astype(np.int16), fits.Header({"BLANK": -5}))]))
    return [rubin, plain, gzip.compress(plain, mtime=0)]
