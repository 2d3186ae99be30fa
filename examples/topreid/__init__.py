"""TOP-ReID: token permutation and complementary reconstruction (AAAI 2024)."""
