"""Operations and the descent on a GPU."""
