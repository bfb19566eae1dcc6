/* What start.c gives to a program on a board. */
#ifndef BOARD_H
#define BOARD_H

void put(const char *text);

#endif
