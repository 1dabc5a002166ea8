"""Operations on batches of sources: stamps drawn, images projected, the basis folded with PSFs."""
